/* What TensorRT's Python bindings need of libnvinfer, to run the real bindings without the real library.
 *
 * The bindings call TensorRT through tables of function pointers; an object is {table, implementation, ...},
 * and here the implementation is the object itself. At first every place in every table holds a function that
 * notes its place and the arguments and gives a pointer to an object like that. Which place belongs to which
 * method differs by version: `stand_in.py` calls the methods once, reads the places, and has `stub_bind` put
 * the functions of this file there. Then an engine can be loaded and run; what it computes is simple and exact.
 *
 * Compile with -DTENSORRT=<major version>.
 *
 * Its plans are text: "plan BATCH HEIGHT WIDTH NUMBERS PROFILES B1 B2 ...", BATCH -1 for a free one, -2 when each
 * profile takes only its largest.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* From libcuda.c, when that is preloaded. */
extern void fake_tell(const char *format, ...) __attribute__((weak));
extern int fake_fault(const char *name) __attribute__((weak));
extern void fake_launch(void *stream, void (*f)(void *), void *argument) __attribute__((weak));
#define TELL(...) do { if (fake_tell) fake_tell(__VA_ARGS__); } while (0)

typedef uint64_t word;
struct call { word place, arguments[6]; };
static struct call calls[256];
static int count;
enum { PLACES = 256 };

/* ---- objects that note every call ---- */

static char page[4096] __attribute__((aligned(4096)));
static void **anything; /* its address ends in 0x10: as a bool it is true */
static word note(word place, word a, word b, word c, word d, word e, word f) {
    if (count < 256) calls[count++] = (struct call){place, {a, b, c, d, e, f}};
    return (word)anything;
}
#define EACH(F, h) F(h##0) F(h##1) F(h##2) F(h##3) F(h##4) F(h##5) F(h##6) F(h##7) \
                   F(h##8) F(h##9) F(h##a) F(h##b) F(h##c) F(h##d) F(h##e) F(h##f)
#define ALL(F) EACH(F, 0x0) EACH(F, 0x1) EACH(F, 0x2) EACH(F, 0x3) EACH(F, 0x4) EACH(F, 0x5) EACH(F, 0x6) \
               EACH(F, 0x7) EACH(F, 0x8) EACH(F, 0x9) EACH(F, 0xa) EACH(F, 0xb) EACH(F, 0xc) EACH(F, 0xd) \
               EACH(F, 0xe) EACH(F, 0xf)
#define NOTE(n) static word note_##n(word a, word b, word c, word d, word e, word f) \
    { return note(n, a, b, c, d, e, f); }
#define NAME(n) (void *)note_##n,
ALL(NOTE)
static void *const noting[PLACES] = {ALL(NAME)};

enum class { ANY, RUNTIME, ENGINE, CONTEXT, CLASSES };
static struct { void *type[2]; void *places[PLACES]; } tables[CLASSES]; /* no type before a table: none is asked */
struct object { void **table; void *implementation; };

#if TENSORRT >= 11
enum { LOG_PLACE = 4 }; /* of ILogger::log, behind language, interface and two destructors */
#else
enum { LOG_PLACE = 0 };
#endif
static void *logger;
static void say(int severity, const char *message) {
    if (logger) (*(void (***)(void *, int, const char *))logger)[LOG_PLACE](logger, severity, message);
}
static int refused(const char *what) {
    char line[128];
    if (!fake_fault || !fake_fault(what)) return 0;
    snprintf(line, sizeof line, "stub: %s is refused", what);
    say(1, line);
    return 1;
}

__attribute__((constructor)) static void prepare(void) {
    for (int i = 0; i < CLASSES; i++) memcpy(tables[i].places, noting, sizeof noting);
    anything = (void **)(page + 0x10);
    for (int i = 0; i < 64; i++) anything[i] = anything;
    anything[0] = tables[ANY].places;
}
int stub_calls(struct call *into) { memcpy(into, calls, sizeof calls); int n = count; count = 0; return n; }

/* ---- an engine that runs ---- */

#if TENSORRT >= 10
struct dims { int32_t count; int64_t d[8]; };
#else
struct dims { int32_t count; int32_t d[8]; };
#endif
struct engine { struct object object; int batch, height, width, numbers, profiles, largest[8]; };
struct context { struct object object; struct engine *engine; int profile, batch; char *pixels; float *rows; };
struct job { int batch, size, numbers; const uint8_t *pixels; float *rows; };

static void *make(enum class class, size_t size) {
    struct object *object = calloc(1, size < 4096 ? 4096 : size);
    object->table = tables[class].places;
    object->implementation = object;
    return object;
}
static void *deserialise(void *self, const char *plan, size_t size) {
    struct engine e;
    char line[256] = {0};
    int used = 0;
    memcpy(line, plan, size < 255 ? size : 255);
    if (sscanf(line, "plan %d %d %d %d %d%n", &e.batch, &e.height, &e.width, &e.numbers, &e.profiles, &used) < 5) {
        say(1, "The engine plan file is not compatible with this version of TensorRT, please rebuild.");
        return 0;
    }
    for (int i = 0, step = 0; i < e.profiles; i++, used += step) sscanf(line + used, "%d%n", &e.largest[i], &step);
    struct engine *engine = make(ENGINE, sizeof e);
    e.object = engine->object, *engine = e;
    say(3, "stub: plan loaded");
    return engine;
}
static int32_t tensors(void *self) { return 2; }
static const char *tensor_name(void *self, int32_t i) { return i ? "embedding" : "crops"; }
static int is_rows(const char *name) { return !strcmp(name, "embedding"); }
static int32_t tensor_mode(void *self, const char *name) { return is_rows(name) ? 2 : 1; }
static int32_t tensor_type(void *self, const char *name) { return is_rows(name) ? 0 : 5; }
static struct dims tensor_shape(struct engine *e, const char *name) {
    int batch = e->batch < 0 ? -1 : e->batch;
    if (is_rows(name)) return (struct dims){2, {batch, e->numbers}};
    return (struct dims){4, {batch, e->height, e->width, 3}};
}
static int smallest(struct engine *e, int profile) { return e->batch == -1 ? 1 : e->largest[profile]; }
static struct dims profile_shape(struct engine *e, const char *name, int32_t profile, int32_t which) {
    struct dims shape = tensor_shape(e, name);
    shape.d[0] = which ? e->largest[profile] : smallest(e, profile);
    return shape;
}
static int32_t profiles(struct engine *e) { return e->profiles; }
static int32_t dla_cores(void *self) { return 2; }
static void set_dla(void *self, int32_t core) { TELL("DLA core %d", core); }
static void *new_context(struct engine *e) {
    if (refused("createExecutionContext")) return 0;
    struct context *context = make(CONTEXT, sizeof *context);
    context->engine = e, context->profile = -1;
    return context;
}
static int set_profile(struct context *c, int32_t profile, void *stream) {
    if (refused("setOptimizationProfileAsync")) return 0;
    c->profile = profile;
    return profile < c->engine->profiles;
}
static int set_shape(struct context *c, const char *name, const struct dims *shape) {
    c->batch = 0; /* until it is known to be good */
    if (refused("setInputShape") || c->profile < 0 || shape->count != 4) return 0;
    if (shape->d[0] > c->engine->largest[c->profile] || shape->d[0] < smallest(c->engine, c->profile)) {
        say(1, "stub: the batch is outside the profile");
        return 0;
    }
    c->batch = shape->d[0];
    return 1;
}
static int set_address(struct context *c, const char *name, void *address) {
    if (refused("setTensorAddress") || (word)address % 256) return 0;
    if (is_rows(name)) c->rows = address; else c->pixels = address;
    return 1;
}
/* Row n, number k: the signed sum of all pixels of picture n whose place is k modulo NUMBERS. Exact in float32. The
 * signs are mixed, because plain sums are alike for all pictures, which the agent refuses as a dead network. */
static int sign(uint32_t place) { return place * 2654435761u >> 31 ? -1 : 1; }
static void compute(void *argument) {
    struct job *j = argument;
    if (fake_fault("compute")) return; /* nothing is written, and nobody says so */
    for (int n = 0; n < j->batch; n++)
        for (int k = 0; k < j->numbers; k++) {
            int32_t sum = 0;
            for (int i = k; i < j->size; i += j->numbers) sum += sign(i) * j->pixels[(size_t)n * j->size + i];
            j->rows[n * j->numbers + k] = sum;
        }
}
static int enqueue(struct context *c, void *stream) {
    struct engine *e = c->engine;
    if (refused("enqueueV3") || !c->batch || !c->rows || !c->pixels) return 0;
    TELL("profile %d runs a batch of %d", c->profile, c->batch);
    struct job *job = malloc(sizeof *job);
    *job = (struct job){c->batch, e->height * e->width * 3, e->numbers, (uint8_t *)c->pixels, c->rows};
    fake_launch(stream, compute, job);
    return 1;
}
static void destroy_runtime(void *self) { TELL("runtime destroyed"); }
static void destroy_engine(void *self) { TELL("engine destroyed"); }
static void destroy_context(void *self) { TELL("execution context destroyed"); }

static const struct { const char *name; enum class class; void *function; } functions[] = {
    {"deserialize_cuda_engine", RUNTIME, deserialise}, {"num_DLA_cores", RUNTIME, dla_cores},
    {"DLA_core", RUNTIME, set_dla}, {"destroy_runtime", RUNTIME, destroy_runtime},
    {"num_io_tensors", ENGINE, tensors}, {"get_tensor_name", ENGINE, tensor_name},
    {"get_tensor_mode", ENGINE, tensor_mode}, {"get_tensor_dtype", ENGINE, tensor_type},
    {"get_tensor_shape", ENGINE, tensor_shape}, {"get_tensor_profile_shape", ENGINE, profile_shape},
    {"num_optimization_profiles", ENGINE, profiles}, {"create_execution_context", ENGINE, new_context},
    {"destroy_engine", ENGINE, destroy_engine},
    {"set_optimization_profile_async", CONTEXT, set_profile}, {"set_input_shape", CONTEXT, set_shape},
    {"set_tensor_address", CONTEXT, set_address}, {"execute_async_v3", CONTEXT, enqueue},
    {"destroy_context", CONTEXT, destroy_context},
};
/* Put the function of that name at a place of its class; 0 when there is none of that name. */
int stub_bind(const char *name, int place) {
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (!strcmp(functions[i].name, name)) {
            tables[functions[i].class].places[place] = functions[i].function;
            return 1;
        }
    return 0;
}
/* From now on, runtimes are of the class that runs. */
static int ready;
void stub_ready(void) { ready = 1; }

/* ---- what the bindings link to ---- */

/* What a test answers with in Python (builder_stand_in.py), instead of an object that only notes. */
void *stub_builder, *stub_parser;
void stub_say(int severity, const char *message) { say(severity, message); }

static int absent(void) { return getenv("STUB_NVINFER_NULL") != 0; }
void *createInferBuilder_INTERNAL(void *l, int32_t v) {
    logger = l;
    if (absent()) { say(1, "stub: CUDA initialization failure with error: 35"); return 0; }
    return stub_builder ? stub_builder : anything;
}
void *createInferRuntime_INTERNAL(void *l, int32_t v) {
    logger = l;
    if (absent()) { say(1, "stub: CUDA initialization failure with error: 35"); return 0; }
    return ready ? make(RUNTIME, 0) : anything;
}
void *createInferRefitter_INTERNAL(void *e, void *l, int32_t v) { return anything; }
void *createNvOnnxParserRefitter_INTERNAL(void *r, void *l, int32_t v) { return anything; }
void *createNvOnnxParser_INTERNAL(void *n, void *l, int32_t v) { return stub_parser ? stub_parser : anything; }
void *getBuilderPluginRegistry(int32_t c) { return anything; }
int32_t getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return anything; }
int initLibNvInferPlugins(void *l, const char *n) { return 1; }
int32_t getInferLibVersion(void) { return 0; }
/* 8.6 only: readers of formats that later versions dropped. */
void *_ZN11nvuffparser15createUffParserEv(void) { return 0; }
void _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi(void) {}
void *_ZN14nvcaffeparser117createCaffeParserEv(void) { return 0; }
void _ZN14nvcaffeparser123shutdownProtobufLibraryEv(void) {}
