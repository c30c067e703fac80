/* A CUDA driver without a device, to run real pycuda and cuda-python on: "device" memory is host memory.
 *
 * It is as late as CUDA may be: what is put on a stream is only done when somebody waits for it. So a missing
 * wait, or a buffer that is filled while a copy may still read it, gives wrong numbers here every time.
 *
 * FAKE_CUDA_DEVICES=0 has no device, FAKE_CUDA_DISCRETE=1 one with memory of its own, FAKE_CUDA_NO_MAPPING=1 one that
 * cannot work in the host's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef uint64_t DP;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_INITIALISED = 3, NO_DEVICE = 100, BAD_DEVICE = 101,
       NO_CONTEXT = 201, NOT_READY = 600, ILLEGAL_ADDRESS = 700, UNSUPPORTED = 801, CAPTURE_INVALID = 901 };

/* ---- for tests: what happened, what to refuse, what is left ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char told[1 << 16];
static struct { char name[64]; int code, skip, times; } faults[16];
static int live;

void fake_tell(const char *format, ...) {
    size_t used = strlen(told);
    va_list rest;
    va_start(rest, format);
    if (used < sizeof told - 256) {
        vsnprintf(told + used, 255, format, rest);
        strcat(told, "\n");
    }
    va_end(rest);
}
const char *fake_told(void) { return told; }
void fake_forget(void) { told[0] = 0; }
int fake_live(void) { return live; }
void fake_count(int more) { live += more; } /* after something was left behind on purpose */
void fake_no_faults(void) { memset(faults, 0, sizeof faults); }

/* Let a function give `code` for `times` calls, after `skip` that succeed. */
void fake_fail(const char *name, int code, int skip, int times) {
    for (int i = 0; i < 16; i++)
        if (!faults[i].times) {
            snprintf(faults[i].name, sizeof faults[i].name, "%s", name);
            faults[i].code = code, faults[i].skip = skip, faults[i].times = times;
            return;
        }
}
int fake_fault(const char *name) {
    for (int i = 0; i < 16; i++)
        if (faults[i].times && !strcmp(faults[i].name, name)) {
            if (faults[i].skip-- > 0) return 0;
            faults[i].skip = 0, faults[i].times--;
            return faults[i].code;
        }
    return 0;
}
#define FAULT do { int code_ = fake_fault(__func__); if (code_) return code_; } while (0)

/* ---- device and contexts ---- */

static int initialised;
static __thread void *current[64];
static __thread int depth;
static char primary;
#define INIT do { if (!initialised) return NOT_INITIALISED; FAULT; } while (0)
#define CTX do { if (!depth) return NO_CONTEXT; FAULT; } while (0)

static int devices(void) { const char *n = getenv("FAKE_CUDA_DEVICES"); return n ? atoi(n) : 1; }
R cuInit(unsigned flags) { FAULT; initialised = 1; return devices() ? OK : NO_DEVICE; }
R cuDriverGetVersion(int *v) { *v = 12060; return OK; }
R cuDeviceGetCount(int *n) { INIT; *n = devices(); return OK; }
R cuDeviceGet(int *d, int ordinal) { INIT; if (ordinal >= devices()) return BAD_DEVICE; *d = 0; return OK; }
R cuDeviceGetName(char *b, int n, int d) { snprintf(b, n, "Fake Orin"); return OK; }
R cuDeviceTotalMem_v2(size_t *b, int d) { *b = (size_t)32 << 30; return OK; }
R cuDeviceComputeCapability(int *a, int *b, int d) { *a = 8, *b = 7; return OK; }
R cuDeviceGetAttribute(int *v, int a, int d) {
    switch (a) {
    case 16: *v = 16; break;                                /* MULTIPROCESSOR_COUNT */
    case 18: *v = !getenv("FAKE_CUDA_DISCRETE"); break;     /* INTEGRATED */
    case 19: *v = !getenv("FAKE_CUDA_NO_MAPPING"); break;   /* CAN_MAP_HOST_MEMORY */
    case 75: *v = 8; break;
    case 76: *v = 7; break;
    default: *v = 0;
    }
    return OK;
}
R cuDevicePrimaryCtxRetain(void **c, int d) { INIT; *c = &primary; live++; return OK; }
R cuDevicePrimaryCtxRelease_v2(int d) { live--; fake_tell("context released"); return OK; }
R cuCtxPushCurrent_v2(void *c) { FAULT; current[depth++] = c; return OK; }
R cuCtxPopCurrent_v2(void **c) { CTX; depth--; if (c) *c = current[depth]; return OK; }
R cuCtxGetDevice(int *d) { CTX; *d = 0; return OK; }
R cuCtxGetCurrent(void **c) { *c = depth ? current[depth - 1] : 0; return OK; }
R cuCtxGetApiVersion(void *c, unsigned *v) { *v = 12060; return OK; }

/* ---- memory ---- */

R cuMemAlloc_v2(DP *p, size_t n) {
    CTX;
    if (!n) return INVALID;
    void *memory = aligned_alloc(256, (n + 255) & ~(size_t)255);
    if (!memory) return NO_MEMORY;
    memset(memory, 0xAB, n);
    *p = (DP)(uintptr_t)memory, live++;
    return OK;
}
R cuMemFree_v2(DP p) { CTX; free((void *)(uintptr_t)p), live--; fake_tell("device memory freed"); return OK; }
R cuMemHostAlloc(void **p, size_t n, unsigned flags) {
    CTX;
    *p = aligned_alloc(4096, (n + 4095) & ~(size_t)4095);
    if (!*p) return NO_MEMORY;
    live++, fake_tell("host memory of %zu bytes, flags %u", n, flags);
    return OK;
}
R cuMemFreeHost(void *p) { CTX; free(p), live--; fake_tell("host memory freed"); return OK; }
R cuMemHostGetDevicePointer_v2(DP *d, void *p, unsigned f) { CTX; *d = (DP)(uintptr_t)p; return OK; }
R cuMemHostGetFlags(unsigned *f, void *p) { *f = 2; return OK; }
R cuMemGetInfo_v2(size_t *free_, size_t *total) { CTX; *free_ = (size_t)16 << 30, *total = (size_t)32 << 30; return OK; }
R cuMemcpyHtoD_v2(DP d, const void *s, size_t n) { CTX; memcpy((void *)(uintptr_t)d, s, n); return OK; }
R cuMemcpyDtoH_v2(void *d, DP s, size_t n) { CTX; memcpy(d, (void *)(uintptr_t)s, n); return OK; }

/* ---- streams, events and graphs ---- */

typedef void (*kernel)(void *);
struct event { struct stream *on; int pending, recorded; uint64_t when; };
struct op { kernel run; void *to; const void *from; size_t size; struct event *event; struct op *next; };
struct work { struct op *first, *last; };
struct stream { struct work work; struct work *capture; };
static uint64_t clock_ns; /* a kernel takes one millisecond */

static void add(struct work *work, struct op op) {
    struct op *new = malloc(sizeof op);
    *new = op, new->next = 0;
    if (work->last) work->last->next = new; else work->first = new;
    work->last = new;
}
static void put(struct stream *s, struct op op) { add(s->capture ? s->capture : &s->work, op); }
static void do_copy(struct op *op) { memcpy(op->to, op->from, op->size); }
static void run(struct op *op) {
    if (op->event) op->event->pending--, op->event->recorded = 1, op->event->when = clock_ns;
    else if (op->run) op->run(op->to), clock_ns += 1000000;
    else if (op->from) do_copy(op);
    else memset(op->to, (int)(op->size >> 56), op->size & (((size_t)1 << 56) - 1));
}
static void drain(struct stream *s, struct event *until) {
    while (s->work.first && (!until || until->pending)) {
        struct op *op = s->work.first;
        s->work.first = op->next;
        if (!op->next) s->work.last = 0;
        run(op);
        free(op);
    }
}
#define LOCKED(statement) do { pthread_mutex_lock(&lock); statement; pthread_mutex_unlock(&lock); } while (0)

/* For the stub of TensorRT: run `f(argument)` in the order of a stream. */
void fake_launch(void *s, kernel f, void *argument) { LOCKED(put(s, (struct op){.run = f, .to = argument})); }

R cuStreamCreate(void **s, unsigned flags) { CTX; *s = calloc(1, sizeof(struct stream)); live++; return OK; }
R cuStreamDestroy_v2(void *s) { LOCKED(drain(s, 0)); free(s), live--; fake_tell("stream destroyed"); return OK; }
R cuStreamSynchronize(void *s) { CTX; if (s) LOCKED(drain(s, 0)); return OK; }
R cuStreamQuery(void *s) { CTX; return ((struct stream *)s)->work.first ? NOT_READY : OK; }
R cuMemcpyHtoDAsync_v2(DP d, const void *s, size_t n, void *on) {
    CTX;
    LOCKED(put(on, (struct op){.to = (void *)(uintptr_t)d, .from = s, .size = n}));
    return OK;
}
R cuMemcpyDtoHAsync_v2(void *d, DP s, size_t n, void *on) {
    CTX;
    LOCKED(put(on, (struct op){.to = d, .from = (void *)(uintptr_t)s, .size = n}));
    return OK;
}
R cuMemsetD8Async(DP d, unsigned char byte, size_t n, void *on) {
    CTX;
    LOCKED(put(on, (struct op){.to = (void *)(uintptr_t)d, .size = n | (size_t)byte << 56}));
    return OK;
}
R cuEventCreate(void **e, unsigned flags) { CTX; *e = calloc(1, sizeof(struct event)); live++; return OK; }
R cuEventDestroy_v2(void *e) { free(e), live--; return OK; }
R cuEventRecord(void *e, void *s) {
    CTX;
    struct event *event = e;
    LOCKED(event->on = s; event->pending++; put(s, (struct op){.event = event}));
    return OK;
}
R cuEventSynchronize(void *e) {
    CTX;
    struct event *event = e;
    LOCKED(if (event->on) drain(event->on, event));
    return OK;
}
R cuEventQuery(void *e) { CTX; return ((struct event *)e)->pending ? NOT_READY : OK; }
R cuEventElapsedTime_v2(float *ms, void *a, void *b) {
    struct event *from = a, *to = b;
    CTX;
    if (!from->recorded || !to->recorded || from->pending || to->pending) return NOT_READY;
    *ms = (to->when - from->when) / 1e6f;
    return OK;
}
R cuStreamBeginCapture(struct stream *s, int mode) { CTX; s->capture = calloc(1, sizeof(struct work)); return OK; }
R cuStreamEndCapture(struct stream *s, void **graph) {
    struct work *captured = s->capture;
    s->capture = 0;
    CTX;
    if (!captured || !captured->first) return CAPTURE_INVALID;
    *graph = captured;
    return OK;
}
R cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    CTX;
    struct work *copy = calloc(1, sizeof *copy);
    for (struct op *op = ((struct work *)graph)->first; op; op = op->next) add(copy, *op);
    *executable = copy, live++;
    return OK;
}
R cuGraphDestroy(void *graph) { return OK; }
R cuGraphExecDestroy(void *executable) { CTX; live--; fake_tell("graph destroyed"); return OK; }
R cuGraphLaunch(void *executable, void *s) {
    CTX;
    fake_tell("graph launched");
    LOCKED(for (struct op *op = ((struct work *)executable)->first; op; op = op->next) put(s, *op));
    return OK;
}

/* ---- names ---- */

static const char *text(R code) {
    switch (code) {
    case OK: return "no error";
    case NO_MEMORY: return "out of memory";
    case NOT_INITIALISED: return "initialization error";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case BAD_DEVICE: return "invalid device ordinal";
    case NO_CONTEXT: return "invalid device context";
    case NOT_READY: return "device not ready";
    case ILLEGAL_ADDRESS: return "an illegal memory access was encountered";
    case UNSUPPORTED: return "operation not supported";
    case CAPTURE_INVALID: return "operation failed due to a previous error during capture";
    default: return "invalid argument";
    }
}
R cuGetErrorString(R code, const char **s) { *s = text(code); return OK; }
static R unsupported(void) { return UNSUPPORTED; }

/* How cuda-python finds functions; it leaves out the suffixes of revised ones. */
R cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    static const char *const suffixes[] = {"", "_v2", "_v4"};
    char whole[128];
    *found = 0;
    for (int i = 0; i < 3 && !*found; i++) {
        snprintf(whole, sizeof whole, "%s%s", name, suffixes[i]);
        *found = dlsym(RTLD_DEFAULT, whole);
    }
    if (!*found) *found = (void *)unsupported;
    if (status) *status = 0;
    return OK;
}
R cuGetProcAddress(const char *name, void **found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
