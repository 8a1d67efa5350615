/* A VLM that `vlm-lite export` wrote, through onnxruntime's C interface, as a library with one function:

     int vlm_answer(const char *image, const char *question, char *buffer, int size)

   image: path of a PNG of the model's size, or NULL (blind). Returns the bytes that the answer takes with the zero at its
   end, and writes it where `size` is enough; or -1, and `buffer` says what is wrong, as far as it fits. VLM_LITE_MODEL
   names the exported folder, read at the first call. One thread at a time. A word with other than ASCII is unknown. */
#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <onnxruntime_c_api.h>
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#include <stb_image.h>

enum { WORDS = 65536, TOKENS = 4096, TEXT = 8192 };
static const OrtApi *ort;
static OrtMemoryInfo *memory;
static OrtSession *vision, *language;
static char *manifest, *vocabulary, *words[WORDS], wrong[1024];
static int64_t count, eos, unknown, context, most, side, shape[6];
static double mean[3], std[3];

static int fail(const char *format, ...) {
  va_list given;
  va_start(given, format);
  vsnprintf(wrong, sizeof wrong, format, given);
  va_end(given);
  return 0;
}

static int good(OrtStatus *status) {
  if (!status) return 1;
  fail("%s", ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return 0;
}

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* The SHA-256 of data as 64 hexadecimal digits (FIPS 180-4). Its constants are roots of primes. */
static void sha256(const unsigned char *data, size_t size, char *hex) {
  uint32_t k[64], h[8], w[64];
  for (int n = 0, p = 2; n < 64; p++) {
    int prime = 1;
    for (int d = 2; d * d <= p; d++) prime &= p % d != 0;
    if (!prime) continue;
    if (n < 8) h[n] = (uint32_t)(uint64_t)floorl(fmodl(sqrtl(p), 1) * 4294967296.0L);
    k[n++] = (uint32_t)(uint64_t)floorl(fmodl(cbrtl(p), 1) * 4294967296.0L);
  }
  for (size_t block = 0, blocks = (size + 8) / 64 + 1; block < blocks; block++) {
    for (int t = 0; t < 16; t++) {
      w[t] = 0;
      for (int b = 0; b < 4; b++) {
        size_t at = block * 64 + t * 4 + b, end = blocks * 64 - 8;
        w[t] = w[t] << 8 | (at < size ? data[at] : at == size ? 0x80 : at >= end ? (uint64_t)size * 8 >> 8 * (7 - (at - end)) & 255 : 0);
      }
    }
    for (int t = 16; t < 64; t++)
      w[t] = w[t - 16] + w[t - 7] + (turn(w[t - 15], 7) ^ turn(w[t - 15], 18) ^ w[t - 15] >> 3) + (turn(w[t - 2], 17) ^ turn(w[t - 2], 19) ^ w[t - 2] >> 10);
    uint32_t v[8];
    memcpy(v, h, sizeof v);
    for (int t = 0; t < 64; t++) {
      uint32_t e = v[4], a = v[0], one = v[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & v[5]) ^ (~e & v[6])) + k[t] + w[t];
      uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
      memmove(v + 1, v, 7 * sizeof *v);
      v[4] += one;
      v[0] = one + two;
    }
    for (int i = 0; i < 8; i++) h[i] += v[i];
  }
  for (int i = 0; i < 8; i++) sprintf(hex + 8 * i, "%08x", h[i]);
}

/* What follows "key": in the manifest, from `after` on. */
static const char *find(const char *after, const char *key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\":", key);
  const char *found = after ? strstr(after, quoted) : NULL;
  if (!found) fail("manifest.json has no %s. Export again: vlm-lite export shapes-vlm FOLDER", key);
  return found ? found + strlen(quoted) : NULL;
}

static int numbers(const char *key, double *out, int n) {
  const char *at = find(manifest, key);
  for (int i = 0; at && i < n; i++) {
    char *end;
    at += strspn(at, " \n[,");
    out[i] = strtod(at, &end);
    if (end == at) return fail("manifest.json: %s is not %d numbers", key, n);
    at = end;
  }
  return at != NULL;
}

/* The file's bytes and a zero, to be freed; where the manifest is known, it must be the file that it describes. */
static char *load(const char *name, size_t *size) {
  char path[4096], hex[65];
  const char *folder = getenv("VLM_LITE_MODEL");
  snprintf(path, sizeof path, "%s/%s", folder ? folder : "exported", name);
  FILE *file = fopen(path, "rb");
  if (!file || fseek(file, 0, SEEK_END)) return fail("%s cannot be read", path), file ? fclose(file) : 0, NULL;
  *size = ftell(file);
  rewind(file);
  char *data = malloc(*size + 1);
  int whole = data && fread(data, 1, *size, file) == *size;
  fclose(file);
  if (!whole) return fail("%s cannot be read", path), free(data), NULL;
  data[*size] = 0;
  if (!manifest) return data;
  const char *said = find(find(find(manifest, "files"), name), "sha256");
  sha256((unsigned char *)data, *size, hex);
  if (said && (said = strchr(said, '"')) && !strncmp(said + 1, hex, 64)) return data;
  fail("%s is not the file that manifest.json describes. Export again: vlm-lite export shapes-vlm FOLDER", path);
  return free(data), NULL;
}

static int opened(OrtEnv *env, OrtSessionOptions *options, const char *name, OrtSession **session) {
  size_t size;
  char *data = load(name, &size);
  int done = data && good(ort->CreateSessionFromArray(env, data, size, options, session));
  return free(data), done;
}

static int start(void) {
  static OrtEnv *env;
  static OrtSessionOptions *options;
  if (language) return 1;
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (!ort) return fail("this onnxruntime is older than version %d of its interface", ORT_API_VERSION);
  size_t size;
  double one[5], past[6];
  free(manifest), manifest = NULL, free(vocabulary), vocabulary = NULL, count = 0;
  if (!(manifest = load("manifest.json", &size)) || !(vocabulary = load("vocabulary.txt", &size))) return 0;
  const char *keys[] = {"eos", "unknown", "context", "max_new_tokens", "image_size"};
  int64_t *places[] = {&eos, &unknown, &context, &most, &side};
  for (int i = 0; i < 5; i++) {
    if (!numbers(keys[i], one + i, 1)) return 0;
    *places[i] = one[i];
  }
  if (!numbers("mean", mean, 3) || !numbers("std", std, 3) || !numbers("past", past, 6)) return 0;
  for (int i = 0; i < 6; i++) shape[i] = past[i];
  for (char *word = strtok(vocabulary, "\n"); word && count < WORDS; word = strtok(NULL, "\n")) words[count++] = word;
  if (context > TOKENS || unknown >= count) return fail("manifest.json describes a model that this caller has no room for");
  return (env || good(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "vlm", &env))) && (options || good(ort->CreateSessionOptions(&options)))
    && (memory || good(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory)))
    && (vision || opened(env, options, "vision.onnx", &vision)) && opened(env, options, "language.onnx", &language);
}

static OrtValue *tensor(void *data, const int64_t *dims, int n, int whole_numbers) {
  size_t bytes = whole_numbers ? sizeof(int64_t) : sizeof(float);
  for (int i = 0; i < n; i++) bytes *= dims[i];
  OrtValue *made = NULL;
  good(ort->CreateTensorWithDataAsOrtValue(memory, data, bytes, dims, n,
    whole_numbers ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &made));
  return made;
}

static int dims_of(const OrtValue *value, int64_t *dims, int n) {
  OrtTensorTypeAndShapeInfo *info = NULL;
  int known = good(ort->GetTensorTypeAndShape(value, &info)) && good(ort->GetDimensions(info, dims, n));
  if (info) ort->ReleaseTensorTypeAndShapeInfo(info);
  return known;
}

/* The image as a prefix (1, Q, D), to be released; NULL where it fails. */
static OrtValue *see(const char *path) {
  int width, height, channels;
  unsigned char *data = stbi_load(path, &width, &height, &channels, 3);
  if (!data) return fail("%s cannot be read as a PNG (%s)", path, stbi_failure_reason()), NULL;
  OrtValue *prefix = NULL, *input = NULL;
  float *pixels = NULL;
  if (width != side || height != side)
    fail("the image is %d x %d; expected %d x %d pixels.", width, height, (int)side, (int)side);
  else if ((pixels = malloc(3 * side * side * sizeof *pixels))) {
    for (int64_t i = 0; i < 3 * side * side; i++) pixels[i % 3 * side * side + i / 3] = (data[i] / 255.0 - mean[i % 3]) / std[i % 3];
    const char *given[] = {"pixels"}, *wanted[] = {"prefix"};
    if ((input = tensor(pixels, (int64_t[]){1, 3, side, side}, 4, 0)))
      good(ort->Run(vision, NULL, given, (const OrtValue *const *)&input, 1, wanted, 1, &prefix));
  }
  if (input) ort->ReleaseValue(input);
  free(pixels);
  stbi_image_free(data);
  return prefix;
}

static int64_t id_of(const char *word, size_t length) {
  for (int64_t id = 0; id < count; id++)
    if (strlen(words[id]) == length && !memcmp(words[id], word, length)) return id;
  return -1;
}

/* Words in lower case, punctuation apart; "A." to "D." are words. Says on stderr which are unknown. */
static int tokenize(const char *question, int64_t *ids) {
  const char *prompt = find(manifest, "prompt"), *hole = prompt ? strstr(prompt, "{question}") : NULL;
  char text[TEXT], *end;
  if (!hole || strlen(question) > TEXT / 2) return fail("the question is too long, or manifest.json has no prompt");
  prompt = strchr(prompt, '"') + 1;
  snprintf(text, sizeof text, "%.*s%s%s", (int)(hole - prompt), prompt, question, hole + strlen("{question}"));
  if ((end = strchr(text + (hole - prompt) + strlen(question), '"'))) *end = 0;
  int n = 0;
  for (size_t at = 0, length; text[at]; at += length) {
    length = 1;
    if (isspace((unsigned char)text[at])) continue;
    if (strchr("ABCD", text[at]) && text[at + 1] == '.') length = 2;
    else if (!ispunct((unsigned char)text[at])) {
      for (length = 0; text[at + length] && !isspace((unsigned char)text[at + length]) && !ispunct((unsigned char)text[at + length]); length++) {
        if (length && strchr("ABCD", text[at + length]) && text[at + length + 1] == '.') break;
      }
      for (size_t i = at; i < at + length; i++) text[i] = tolower((unsigned char)text[i]);
    }
    if (n == context) return fail("the question has more than %d words, too many for this model. Shorten it.", n);
    int64_t id = id_of(text + at, length);
    if (id < 0) fprintf(stderr, "note: a word that the model does not know: %.*s\n", (int)length, text + at);
    ids[n++] = id < 0 ? unknown : id;
  }
  return n;
}

int vlm_answer(const char *image, const char *question, char *buffer, int size) {
  static int64_t ids[TOKENS];
  char said[TEXT] = "";
  OrtValue *blind = NULL, *prefix = NULL, *past = NULL;
  float none = 0;
  int64_t dims[3] = {1, 0, 0};
  int done = 0, n = start() ? tokenize(question, ids) : 0;
  if (n && (blind = tensor(&none, (int64_t[]){1, 0, shape[3] * shape[5]}, 3, 0)) && (past = tensor(&none, shape, 6, 0))
      && (!image || ((prefix = see(image)) && dims_of(prefix, dims, 3)))) {
    done = dims[1] + n + most <= context || fail("the question has %d words, too many for this model. Shorten it.", n);
    for (int step = 0; done && step < most; step++) {
      const char *given[] = {"prefix", "input_ids", "past"}, *wanted[] = {"logits", "present"};
      OrtValue *input = tensor(ids, (int64_t[]){1, n}, 2, 1), *found[2] = {NULL, NULL};
      const OrtValue *values[] = {prefix && !step ? prefix : blind, input, past};
      float *logits;
      done = input && good(ort->Run(language, NULL, given, values, 3, wanted, 2, found)) && good(ort->GetTensorMutableData(found[0], (void **)&logits));
      int64_t best = 0;
      for (int64_t id = 1; done && id < count; id++)
        if (logits[id] > logits[best]) best = id;
      if (input) ort->ReleaseValue(input);
      if (found[0]) ort->ReleaseValue(found[0]);
      if (found[1]) ort->ReleaseValue(past), past = found[1];
      if (!done || best == eos) break;
      size_t length = strlen(said);
      snprintf(said + length, sizeof said - length, "%s%s", length && !strchr(".,?!", words[best][0]) ? " " : "", words[best]);
      ids[0] = best;
      n = 1;
    }
  }
  if (past) ort->ReleaseValue(past);
  if (prefix) ort->ReleaseValue(prefix);
  if (blind) ort->ReleaseValue(blind);
  const char *text = done ? said : wrong;
  int needed = strlen(text) + 1;
  if (size > 0 && (!done || needed <= size)) snprintf(buffer, size, "%s", text);
  return done ? needed : -1;
}
