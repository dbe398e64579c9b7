/* The CUDA runtime, part three: device code. A launch is counted and dropped; what the host asks about a kernel is
 * answered without looking at its code, because there is none to look at. */
#include "vgpu.h"

static struct launches launches;

cudaError_t launched(void) {
  __atomic_add_fetch(&launches.all, 1, __ATOMIC_RELAXED);
  return cudaSuccess;
}
void plan_launched(void) {
  __atomic_add_fetch(&launches.plans, 1, __ATOMIC_RELAXED);
  launched();
}
struct launches launches_so_far(void) {
  return (struct launches){__atomic_load_n(&launches.all, __ATOMIC_RELAXED),
                           __atomic_load_n(&launches.plans, __ATOMIC_RELAXED)};
}
API unsigned long long vgpu_launches(void) { return launches_so_far().all; }

/* ---- registration, which the compiler writes into every library with device code */

static void *fat_binary;
API void **__cudaRegisterFatBinary(void *image UNUSED) { return &fat_binary; }
API void __cudaRegisterFatBinaryEnd(void **handle UNUSED) {}
API void __cudaUnregisterFatBinary(void **handle UNUSED) {}
API char __cudaInitModule(void **handle UNUSED) { return 1; }
API void __cudaRegisterFunction(void **handle UNUSED, const char *host UNUSED, char *device UNUSED,
                                const char *name UNUSED, int limit UNUSED, void *thread UNUSED, void *block_id UNUSED,
                                void *block UNUSED, void *grid UNUSED, int *warp UNUSED) {}
API void __cudaRegisterVar(void **handle UNUSED, char *host UNUSED, char *device UNUSED, const char *name UNUSED,
                           int external UNUSED, size_t size UNUSED, int constant UNUSED, int global UNUSED) {}
API void __cudaRegisterManagedVar(void **handle UNUSED, void **host UNUSED, char *device UNUSED,
                                  const char *name UNUSED, int external UNUSED, size_t size UNUSED, int constant UNUSED,
                                  int global UNUSED) {}

/* ---- launches */

typedef struct {
  unsigned x, y, z;
} extent; /* passed in registers exactly as dim3 is */
static _Thread_local struct {
  extent grid, block;
  size_t shared;
  cudaStream_t stream;
} pushed;

API unsigned __cudaPushCallConfiguration(extent grid, extent block, size_t shared, struct CUstream_st *stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}
API cudaError_t __cudaPopCallConfiguration(extent *grid, extent *block, size_t *shared, void *stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
  *(cudaStream_t *)stream = pushed.stream;
  return cudaSuccess;
}
API cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  return *kernel = (cudaKernel_t)function, cudaSuccess;
}
API cudaError_t __cudaLaunchKernel(cudaKernel_t kernel UNUSED, extent grid UNUSED, extent block UNUSED,
                                   void **args UNUSED, size_t shared UNUSED, cudaStream_t stream UNUSED) {
  return launched();
}
cudaError_t cudaLaunchKernel(const void *kernel UNUSED, struct dim3 grid UNUSED, struct dim3 block UNUSED,
                             void **args UNUSED, size_t shared UNUSED, cudaStream_t stream UNUSED) {
  return launched();
}
cudaError_t cudaLaunchCooperativeKernel(const void *kernel UNUSED, struct dim3 grid UNUSED, struct dim3 block UNUSED,
                                        void **args UNUSED, size_t shared UNUSED, cudaStream_t stream UNUSED) {
  return launched();
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how UNUSED, const void *kernel UNUSED, void **args UNUSED) {
  return launched();
}

/* ---- what is asked about a kernel
 * Assumption: 32 registers a thread, which allows full occupancy. Wrong for heavy kernels: cub's temporaries, which
 * grow with the occupancy, can then be a few KiB larger than on the card. */

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *out, const void *function UNUSED) {
  configure();
  memset(out, 0, sizeof *out);
  out->maxThreadsPerBlock = 1024;
  out->numRegs = 32;
  out->binaryVersion = out->ptxVersion = settings.binary;
  out->maxDynamicSharedSizeBytes = (int)settings.shared_memory_per_block;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *function UNUSED, enum cudaFuncAttribute name UNUSED, int value UNUSED) {
  return cudaSuccess;
}

int occupancy(int threads, size_t shared) {
  configure();
  int fit = settings.threads_per_multiprocessor / (threads > 0 ? (int)ROUND_UP(threads, 32) : 32);
  if (fit > settings.blocks_per_multiprocessor) fit = settings.blocks_per_multiprocessor;
  if (shared) {
    int by_shared = (int)(settings.shared_memory_per_multiprocessor / (shared + (settings.major >= 8 ? 1024 : 0)));
    if (fit > by_shared) fit = by_shared;
  }
  return fit;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function UNUSED,
                                                                   int threads, size_t shared, unsigned flags UNUSED) {
  return *blocks = occupancy(threads, shared), cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function UNUSED, int threads,
                                                          size_t shared) {
  return *blocks = occupancy(threads, shared), cudaSuccess;
}
