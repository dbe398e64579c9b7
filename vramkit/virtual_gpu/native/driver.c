/* The CUDA driver: what torch, cuDNN and Triton look up by name.
 * It knows virtual memory management (expandable segments) and a few queries; every other driver function is a
 * generated stub that answers "not supported". */
#define _GNU_SOURCE
#include "vgpu.h"

#include <dlfcn.h>

CUresult cuInit(unsigned flags UNUSED) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  configure();
  *device = ordinal;
  return ordinal >= 0 && ordinal < settings.devices ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}
CUresult cuDeviceGetCount(int *count) { return configure(), *count = settings.devices, CUDA_SUCCESS; }
CUresult cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
  return cudaDeviceGetPCIBusId(id, length, device) ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice device UNUSED) {
  configure();
  snprintf(name, (size_t)length, "%s", settings.name);
  return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  size_t available;
  configure();
  if (device < 0 || device >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
  device_memory(device, &available, bytes);
  return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute name, CUdevice device) {
  return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)name, device);
}
CUresult cuGetErrorString(CUresult error, const char **text) {
  return *text = cudaGetErrorString((cudaError_t)error), CUDA_SUCCESS; /* the two share the numbers that occur here */
}
CUresult cuGetErrorName(CUresult error, const char **text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR";
  return CUDA_SUCCESS;
}

/* ---- contexts: one per device, named by the device's number plus one */

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  configure();
  *flags = 0, *active = context_exists(device);
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  configure();
  context_create(device);
  *context = (CUcontext)(uintptr_t)(device + 1);
  return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
  configure();
  *context = context_exists(device_current()) ? (CUcontext)(uintptr_t)(device_current() + 1) : NULL;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
  if (context) device_choose((int)(uintptr_t)context - 1);
  return CUDA_SUCCESS;
}

/* ---- virtual memory management */

CUresult cuMemGetAllocationGranularity(size_t *granule, const CUmemAllocationProp *prop UNUSED,
                                       CUmemAllocationGranularity_flags option UNUSED) {
  return *granule = GRANULE, CUDA_SUCCESS;
}
CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment UNUSED, CUdeviceptr hint UNUSED,
                             unsigned long long flags UNUSED) {
  configure();
  *pointer = (CUdeviceptr)address_reserve(device_current(), size);
  trace("cuMemAddressReserve(%zu) -> %p", size, (void *)*pointer);
  return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemAddressFree(CUdeviceptr pointer, size_t size UNUSED) {
  return range_drop((void *)pointer) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

struct physical {
  size_t size;
  int device;
};

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags UNUSED) {
  configure();
  int device = prop->location.id;
  context_create(device);
  bool enough = device_charge(device, size);
  trace("cuMemCreate(%zu) on %d: %s", size, device, enough ? "ok" : "out of memory");
  if (!enough) return CUDA_ERROR_OUT_OF_MEMORY;
  struct physical *memory = malloc(sizeof *memory);
  *memory = (struct physical){size, device};
  *handle = (CUmemGenericAllocationHandle)(uintptr_t)memory;
  return CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  struct physical *memory = (struct physical *)(uintptr_t)handle;
  device_refund(memory->device, memory->size);
  free(memory);
  return CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr pointer UNUSED, size_t size UNUSED, size_t offset UNUSED,
                  CUmemGenericAllocationHandle handle UNUSED, unsigned long long flags UNUSED) {
  return CUDA_SUCCESS; /* usable once cuMemSetAccess says so */
}
CUresult cuMemSetAccess(CUdeviceptr pointer, size_t size, const CUmemAccessDesc *access UNUSED, size_t count UNUSED) {
  return address_map((void *)pointer, size, true) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemUnmap(CUdeviceptr pointer, size_t size) {
  return address_map((void *)pointer, size, false) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *size, CUdeviceptr pointer) {
  struct range range;
  if (!range_find((void *)pointer, &range)) return CUDA_ERROR_INVALID_VALUE;
  if (base) *base = range.start;
  if (size) *size = range.size;
  return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *available, size_t *total) { return (CUresult)cudaMemGetInfo(available, total); }
CUresult cuMemsetD32Async(CUdeviceptr at UNUSED, unsigned value UNUSED, size_t count UNUSED, CUstream stream UNUSED) {
  return CUDA_SUCCESS;
}
CUresult cuStreamWriteValue32_v2(CUstream stream UNUSED, CUdeviceptr at UNUSED, cuuint32_t value UNUSED,
                                 unsigned flags UNUSED) {
  return CUDA_SUCCESS;
}

/* ---- modules: what run-time compiled kernels (NVRTC, Triton) are loaded with */

CUresult cuLaunchKernel(CUfunction function UNUSED, unsigned grid_x UNUSED, unsigned grid_y UNUSED,
                        unsigned grid_z UNUSED, unsigned block_x UNUSED, unsigned block_y UNUSED,
                        unsigned block_z UNUSED, unsigned shared UNUSED, CUstream stream UNUSED, void **args UNUSED,
                        void **extra UNUSED) {
  return (CUresult)launched();
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *how UNUSED, CUfunction function UNUSED, void **args UNUSED,
                          void **extra UNUSED) {
  return (CUresult)launched();
}
CUresult cuModuleLoadData(CUmodule *module, const void *image UNUSED) { return (CUresult)make((void **)module); }
CUresult cuModuleUnload(CUmodule module) { return (CUresult)discard(module); }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name UNUSED) {
  return *function = (CUfunction)module, CUDA_SUCCESS;
}
CUresult cuModuleGetGlobal_v2(CUdeviceptr *at, size_t *size, CUmodule module UNUSED, const char *name UNUSED) {
  static char variable[4096];
  if (at) *at = (CUdeviceptr)variable;
  if (size) *size = sizeof variable;
  return CUDA_SUCCESS;
}
CUresult cuLibraryLoadData(CUlibrary *library, const void *code UNUSED, CUjit_option *jit UNUSED,
                           void **jit_values UNUSED, unsigned jit_count UNUSED, CUlibraryOption *options UNUSED,
                           void **values UNUSED, unsigned count UNUSED) {
  return (CUresult)make((void **)library);
}
CUresult cuLibraryUnload(CUlibrary library) { return (CUresult)discard(library); }
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name UNUSED) {
  return *kernel = (CUkernel)library, CUDA_SUCCESS;
}
CUresult cuKernelGetFunction(CUfunction *function, CUkernel kernel) {
  return *function = (CUfunction)kernel, CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute name UNUSED, int value UNUSED, CUkernel kernel UNUSED,
                              CUdevice device UNUSED) {
  return CUDA_SUCCESS;
}
CUresult cuKernelGetAttribute(int *value, CUfunction_attribute name UNUSED, CUkernel kernel UNUSED,
                              CUdevice device UNUSED) {
  return *value = 0, CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute name, CUfunction function UNUSED) {
  return *value = name == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function UNUSED, CUfunction_attribute name UNUSED, int value UNUSED) {
  return CUDA_SUCCESS;
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function UNUSED, int threads,
                                                     size_t shared) {
  return *blocks = occupancy(threads, shared), CUDA_SUCCESS;
}

/* ---- how torch finds driver functions */

static CUresult unsupported(void) { return CUDA_ERROR_NOT_SUPPORTED; }

static void *entry_point(const char *symbol) {
  char versioned[128];
  Dl_info self;
  snprintf(versioned, sizeof versioned, "%s_v2", symbol);
  dladdr(&settings, &self);
  void *library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  void *found = dlsym(library, versioned);
  if (!found) found = dlsym(library, symbol);
  if (!found) trace("driver function %s is not emulated", symbol);
  return found ? found : (void *)unsupported;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version UNUSED,
                                             unsigned long long flags UNUSED,
                                             enum cudaDriverEntryPointQueryResult *status) {
  *function = entry_point(symbol);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
#if CUDART_VERSION < 13000
#undef cudaGetDriverEntryPoint
API cudaError_t cudaGetDriverEntryPoint(const char *symbol, void **function, unsigned long long flags,
                                        enum cudaDriverEntryPointQueryResult *status) {
  return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, status);
}
#endif
