"""The command `vlm-lite export`."""

import argparse

EXPORT = """example:
  vlm-lite export shapes-vlm exported

Writes vision.onnx, language.onnx, tokenizer.json, vocabulary.txt and manifest.json, and checks them with onnxruntime
against PyTorch: outputs to 1e-4, and equal answers to 200 questions. callers/ and docs/demo/ of the clone read them."""


def add_export(commands):
    """Add the command `export` to the parser's `commands`."""
    export = commands.add_parser(
        "export",
        help="a VLM as ONNX files, for a browser or another language",
        epilog=EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    export.add_argument("run", metavar="RUN", help="a folder of a saved VLM, or a name in the zoo")
    export.add_argument("out", metavar="OUT", help="the folder to write, whole or not at all")
    export.set_defaults(call=run_export)


def run_export(options):
    """`vlm-lite export RUN OUT`."""
    from vlm_lite.data.formats import image_tensor
    from vlm_lite.data.shapes import load_shapes
    from vlm_lite.export import export
    from vlm_lite.models.vlm import VLM
    from vlm_lite.profiles import resolve_model

    vlm = VLM.from_pretrained(resolve_model(options.run))
    captions, questions = load_shapes("val", 220)
    images, ids = image_tensor(captions)
    asked = {row["image_id"]: row["question"] for row in questions.remove_columns("image")}
    rows = [k for k, name in enumerate(ids) if name in asked][:200]
    found = export(vlm, options.out, images[rows], [asked[ids[k]] for k in rows])
    print(
        f"{options.out}: {found['bytes'] / 1e6:.1f} MB. onnxruntime and PyTorch differ by at most {found['error']:.0e}, "
        f"and answer {found['equal']} of {len(rows)} questions equally."
    )
