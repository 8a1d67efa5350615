"""Every id and address that the course downloads from, in one table; nothing else in the package names one."""

from dataclasses import dataclass, replace

from vlm_lite.profiles import T4


@dataclass(frozen=True)
class Source:
    """A file, or with {} in its address a family of files.

    size in bytes and hash ("md5:...") are checked where known; `about` is bytes for an estimate only. member: the file
    wanted out of a zip.
    """

    address: str
    size: int | None = None
    hash: str | None = None
    member: str | None = None
    about: int = 0

    def at(self, number, **known):
        """One file of a family."""
        return replace(self, address=self.address.format(number), **known)


COCO, VQA = "http://images.cocodataset.org", "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
POPE = "https://raw.githubusercontent.com/AoiDragon/POPE/e3e39262c85a6a83f26cf5094022a782cb0df58d/output/coco"
RETRIEVAL = "https://huggingface.co/datasets/clip-benchmark/wds_mscoco_captions/resolve/main/test"
SOURCES = {
    "captions": Source(
        f"{COCO}/annotations/annotations_trainval2014.zip",
        252_872_794,
        "md5:0a379cfc70b0e71301e0f377548639bd",
        "annotations/captions_train2014.json",
    ),
    "questions": Source(
        f"{VQA}/v2_Questions_Train_mscoco.zip",
        7_239_401,
        member="v2_OpenEnded_mscoco_train2014_questions.json",
    ),
    "annotations": Source(
        f"{VQA}/v2_Annotations_Train_mscoco.zip",
        21_708_861,
        member="v2_mscoco_train2014_annotations.json",
    ),
    "instructions": Source(
        "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main/"
        "llava_instruct_150k.json",
        about=229_000_000,
    ),
    "picture": Source(f"{COCO}/train2014/COCO_train2014_{{:012d}}.jpg", about=165_000),  # the mean
    "test picture": Source(f"{COCO}/val2014/COCO_val2014_{{:012d}}.jpg", about=165_000),
    "retrieval count": Source(f"{RETRIEVAL}/nshards.txt", about=2),
    "retrieval test": Source(f"{RETRIEVAL}/{{}}.tar", about=840_000_000),  # all of them together
    "pope": Source(f"{POPE}/coco_pope_{{}}.json", about=500_000),
    "mmbench": Source(
        "https://opencompass.openxlab.space/utils/benchmarks/MMBench/MMBench_DEV_EN.tsv",
        hash="md5:b6caf1133a01c6bb705cf753bb527ed8",
    ),
}
MODELS = {
    "clip": T4.vision_model,
    "smaller clip": "openai/clip-vit-base-patch32",
    "gpt2": T4.language_model,
    "opt-1.3b": "facebook/opt-1.3b",
    "instruct": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smaller instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "finished VLM": T4.vlm_model,
}
DATASETS = {
    "cifar-10": "uoft-cs/cifar10",
    "imagenette": "johnowhitaker/imagenette2-320",
}  # by `datasets`, no mirror
