/* A CUDA driver that claims one H100 and computes nothing. Memory is the host's, kernels are loaded and
 * "run" as no operation, and what is read back is zero. With it NVIDIA's real compiler, NVRTC, sees every
 * kernel of a run on a machine without a GPU: what does not compile is an error here and not on the user's
 * GPU. See scripts/cuda-kernels.sh.
 *
 * The answers are those of the CUDA driver API, version 13.0: 0 is success. */
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef uint64_t Address;
typedef void *Handle;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101 };
enum { SHARED_BYTES = 232448 };

static atomic_int modules, launches, reads;
/* Something was copied to the host since the last wait. */
static atomic_bool copied;

static void report(void) {
    fprintf(stderr, "no-gpu: %d kernels compiled, %d launches, %d waits for results\n", modules, launches, reads);
}

static Result wait(void) {
    if (atomic_exchange(&copied, 0)) reads++;
    return 0;
}

static Result handle(Handle *out) {
    *out = calloc(1, sizeof(double));
    return *out ? 0 : OUT_OF_MEMORY;
}

static void *host(Address address) { return (void *)(uintptr_t)address; }

/* The driver and its device. */

Result cuInit(unsigned flags) {
    static atomic_flag done = ATOMIC_FLAG_INIT;
    (void)flags;
    if (!atomic_flag_test_and_set(&done)) atexit(report);
    return 0;
}
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuDeviceGetCount(int *count) { *count = 1; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = 0; return ordinal ? INVALID_DEVICE : 0; }
Result cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    snprintf(name, size, "NVIDIA H100 (no GPU)");
    return 0;
}
Result cuDeviceGetUuid_v2(char *uuid, int device) { (void)device; memset(uuid, 1, 16); return 0; }
Result cuDeviceGetUuid(char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
Result cuDeviceGetPCIBusId(char *text, int size, int device) {
    (void)device;
    snprintf(text, size, "0000:00:01.0");
    return 0;
}
Result cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = 80ull << 30; return 0; }

/* The numbers of the attributes are those of CUdevice_attribute. */
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break;     /* threads of a block, along x and y */
    case 4: *value = 64; break;                       /* along z */
    case 5: *value = 0x7fffffff; break;               /* blocks of a grid, along x */
    case 6: case 7: *value = 65535; break;            /* along y and z */
    case 8: *value = 49152; break;                    /* shared memory of a block */
    case 10: *value = 32; break;                      /* threads of a warp */
    case 16: *value = 132; break;                     /* multiprocessors */
    case 75: *value = 9; break;                       /* compute capability, major */
    case 76: *value = 0; break;                       /* and minor */
    case 81: *value = SHARED_BYTES + 1024; break;     /* shared memory of a multiprocessor */
    case 97: *value = SHARED_BYTES; break;            /* of a block that asks for it */
    case 115: *value = 1; break;                      /* memory pools */
    default: *value = 0;
    }
    return 0;
}

/* Contexts, streams and events. */

static _Thread_local Handle current;

Result cuDevicePrimaryCtxRetain(Handle *context, int device) {
    (void)device;
    *context = (Handle)1;
    return 0;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return 0; }
Result cuCtxSetCurrent(Handle context) { current = context; return 0; }
Result cuCtxGetCurrent(Handle *context) { *context = current; return 0; }
Result cuCtxSynchronize(void) { return 0; }
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
Result cuStreamCreate(Handle *stream, unsigned flags) { (void)flags; return handle(stream); }
Result cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) {
    (void)flags; (void)priority;
    return handle(stream);
}
Result cuStreamSynchronize(Handle stream) { (void)stream; return wait(); }
Result cuStreamQuery(Handle stream) { (void)stream; return 0; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
    (void)stream; (void)event; (void)flags;
    return 0;
}
Result cuStreamDestroy_v2(Handle stream) { free(stream); return 0; }
Result cuEventCreate(Handle *event, unsigned flags) { (void)flags; return handle(event); }
/* Each launch takes 50 ms by this clock, which ends loops that wait for a measurement. */
Result cuEventRecord(Handle event, Handle stream) {
    (void)stream;
    *(double *)event = launches * 50.0;
    return 0;
}
Result cuEventSynchronize(Handle event) { (void)event; return wait(); }
Result cuEventQuery(Handle event) { (void)event; return 0; }
Result cuEventElapsedTime(float *milliseconds, Handle start, Handle end) {
    *milliseconds = 0.01f + (float)(*(double *)end - *(double *)start);
    return 0;
}
Result cuEventElapsedTime_v2(float *milliseconds, Handle start, Handle end) {
    return cuEventElapsedTime(milliseconds, start, end);
}
Result cuEventDestroy_v2(Handle event) { free(event); return 0; }

/* Memory. */

Result cuMemAlloc_v2(Address *address, size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 512, bytes ? bytes : 512)) return OUT_OF_MEMORY;
    memset(memory, 0, bytes);
    *address = (uintptr_t)memory;
    return 0;
}
Result cuMemAllocAsync(Address *address, size_t bytes, Handle stream) {
    (void)stream;
    return cuMemAlloc_v2(address, bytes);
}
Result cuMemFree_v2(Address address) { free(host(address)); return 0; }
Result cuMemFreeAsync(Address address, Handle stream) { (void)stream; return cuMemFree_v2(address); }
Result cuMemAllocHost_v2(Handle *memory, size_t bytes) {
    Address address = 0;
    Result result = cuMemAlloc_v2(&address, bytes);
    *memory = host(address);
    return result;
}
Result cuMemFreeHost(Handle memory) { free(memory); return 0; }
Result cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *total = 80ull << 30;
    *free_bytes = 70ull << 30;
    return 0;
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t bytes, Handle stream) {
    (void)stream;
    memset(host(to), value, bytes);
    return 0;
}
Result cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, Handle stream) {
    (void)stream;
    memcpy(host(to), from, bytes);
    return 0;
}
/* What comes back is zero: an index into a table then is one that the table has. */
Result cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, Handle stream) {
    (void)from; (void)stream;
    memset(to, 0, bytes);
    copied = 1;
    return 0;
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, Handle stream) {
    (void)stream;
    memmove(host(to), host(from), bytes);
    return 0;
}

/* CUDA_MEMCPY2D. */
typedef struct {
    size_t x, y;
    int kind; /* 1 is host memory */
    void *host;
    Address device;
    Handle array;
    size_t pitch;
} Side;
typedef struct {
    Side from, to;
    size_t width, height;
} Copy2D;

static char *start(const Side *side) {
    char *base = side->kind == 1 ? side->host : host(side->device);
    return base + side->y * side->pitch + side->x;
}
Result cuMemcpy2DAsync_v2(const Copy2D *copy, Handle stream) {
    (void)stream;
    for (size_t row = 0; row < copy->height; row++) {
        char *to = start(&copy->to) + row * copy->to.pitch;
        if (copy->to.kind == 1) {
            memset(to, 0, copy->width);
            copied = 1;
        } else {
            memcpy(to, start(&copy->from) + row * copy->from.pitch, copy->width);
        }
    }
    return 0;
}

/* Kernels. */

Result cuModuleLoadData(Handle *module, const void *image) {
    (void)image;
    modules++;
    return handle(module);
}
Result cuModuleUnload(Handle module) { free(module); return 0; }
Result cuModuleGetFunction(Handle *function, Handle module, const char *name) {
    (void)module; (void)name;
    return handle(function);
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
    (void)function; (void)attribute;
    return value > SHARED_BYTES ? INVALID_VALUE : 0;
}
Result cuFuncGetAttribute(int *value, int attribute, Handle function) {
    (void)attribute; (void)function;
    *value = 0;
    return 0;
}
Result cuLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x,
                      unsigned y, unsigned z, unsigned shared, Handle stream, Handle *parameters,
                      Handle *extra) {
    (void)function; (void)grid_x; (void)grid_y; (void)grid_z; (void)x; (void)y; (void)z;
    (void)shared; (void)stream; (void)parameters; (void)extra;
    launches++;
    return 0;
}
Result cuTensorMapEncodeTiled(void) { return 0; }
Result cuTensorMapEncodeIm2col(void) { return 0; }
Result cuTensorMapEncodeIm2colWide(void) { return 0; }

/* Errors. */

Result cuGetErrorName(Result error, const char **text) { (void)error; *text = "NO_GPU"; return 0; }
Result cuGetErrorString(Result error, const char **text) {
    (void)error;
    *text = "the driver without a GPU refuses this";
    return 0;
}
