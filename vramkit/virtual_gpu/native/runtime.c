/* The CUDA runtime, part one: devices, errors, memory and copies.
 * It answers what host code asks about a device; kernels are in kernels.c, streams and events in streams.c. */
#include "vgpu.h"

/* ---- errors */

static _Thread_local cudaError_t last_error;

cudaError_t fail(cudaError_t error) { return last_error = error; }

cudaError_t cudaGetLastError(void) {
  cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) { return last_error; }

static const struct {
  cudaError_t error;
  const char *name, *text;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
};
const char *cudaGetErrorString(cudaError_t error) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].error == error) return errors[i].text;
  return "unrecognized error code";
}
const char *cudaGetErrorName(cudaError_t error) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].error == error) return errors[i].name;
  return "cudaErrorUnknown";
}

/* ---- devices */

static _Thread_local int current;

int device_current(void) { return current; }

bool device_choose(int device) {
  configure();
  if (device < 0 || device >= settings.devices) return false;
  current = device;
  return true;
}

cudaError_t cudaGetDeviceCount(int *count) {
  configure();
  used();
  *count = settings.devices;
  return settings.devices ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaGetDevice(int *device) {
  configure();
  thread_seen();
  *device = current;
  return settings.devices ? cudaSuccess : fail(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int device) {
  if (!device_choose(device)) return fail(cudaErrorInvalidDevice);
  context_create(device); /* since CUDA 12 this call creates the context */
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) {
  configure();
  context_create(current);
  autograd_rest();
  return cudaSuccess;
}
cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *yes, int device, int peer) { return *yes = device != peer, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int peer UNUSED, unsigned flags UNUSED) { return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
  configure();
  if (device < 0 || device >= settings.devices) return fail(cudaErrorInvalidDevice);
  snprintf(id, (size_t)length, "0000:%02X:00.0", settings.board[device] + 1); /* NVML finds the board by it */
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
  configure();
  if (device < 0 || device >= settings.devices) return fail(cudaErrorInvalidDevice);
  size_t available;
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", settings.name);
  memset(p->uuid.bytes, 0x10 + settings.board[device], sizeof p->uuid.bytes);
  device_memory(device, &available, &p->totalGlobalMem);
  p->sharedMemPerBlock = 48 * 1024;
  p->sharedMemPerBlockOptin = settings.shared_memory_per_block;
  p->sharedMemPerMultiprocessor = settings.shared_memory_per_multiprocessor;
  p->reservedSharedMemPerBlock = settings.major >= 8 ? 1024 : 0;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsPerMultiProcessor = settings.threads_per_multiprocessor;
  p->maxBlocksPerMultiProcessor = settings.blocks_per_multiprocessor;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = settings.major, p->minor = settings.minor;
  p->textureAlignment = 512, p->texturePitchAlignment = 32, p->surfaceAlignment = 512;
  p->multiProcessorCount = settings.multiprocessors;
  p->l2CacheSize = (int)settings.l2_cache;
  p->memoryBusWidth = settings.bus_width;
  p->canMapHostMemory = p->unifiedAddressing = p->concurrentKernels = p->managedMemory = 1;
  p->concurrentManagedAccess = p->computePreemptionSupported = p->cooperativeLaunch = 1;
  p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->hostRegisterSupported = p->memoryPoolsSupported = p->ipcEventSupported = 1;
  p->unifiedFunctionPointers = 1;
  p->clusterLaunch = settings.major >= 9;
  p->asyncEngineCount = 3;
  p->ECCEnabled = 1;
  p->pciBusID = settings.board[device] + 1;
  return cudaSuccess;
}

int device_attribute(int name, int device) {
  struct cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, device)) return 0;
  switch (name) {
  case cudaDevAttrMaxThreadsPerBlock: return p.maxThreadsPerBlock;
  case cudaDevAttrMaxBlockDimX: return p.maxThreadsDim[0];
  case cudaDevAttrMaxBlockDimY: return p.maxThreadsDim[1];
  case cudaDevAttrMaxBlockDimZ: return p.maxThreadsDim[2];
  case cudaDevAttrMaxGridDimX: return p.maxGridSize[0];
  case cudaDevAttrMaxGridDimY: return p.maxGridSize[1];
  case cudaDevAttrMaxGridDimZ: return p.maxGridSize[2];
  case cudaDevAttrMaxSharedMemoryPerBlock: return (int)p.sharedMemPerBlock;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (int)p.sharedMemPerBlockOptin;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (int)p.sharedMemPerMultiprocessor;
  case cudaDevAttrReservedSharedMemoryPerBlock: return (int)p.reservedSharedMemPerBlock;
  case cudaDevAttrTotalConstantMemory: return (int)p.totalConstMem;
  case cudaDevAttrWarpSize: return p.warpSize;
  case cudaDevAttrMaxRegistersPerBlock: return p.regsPerBlock;
  case cudaDevAttrMaxRegistersPerMultiprocessor: return p.regsPerMultiprocessor;
  case cudaDevAttrClockRate: return settings.clock_mhz * 1000;
  case cudaDevAttrMemoryClockRate: return settings.memory_clock_mhz * 1000;
  case cudaDevAttrGlobalMemoryBusWidth: return p.memoryBusWidth;
  case cudaDevAttrL2CacheSize: return p.l2CacheSize;
  case cudaDevAttrMultiProcessorCount: return p.multiProcessorCount;
  case cudaDevAttrMaxThreadsPerMultiProcessor: return p.maxThreadsPerMultiProcessor;
  case cudaDevAttrMaxBlocksPerMultiprocessor: return p.maxBlocksPerMultiProcessor;
  case cudaDevAttrComputeCapabilityMajor: return p.major;
  case cudaDevAttrComputeCapabilityMinor: return p.minor;
  case cudaDevAttrPciBusId: return p.pciBusID;
  case cudaDevAttrAsyncEngineCount: return p.asyncEngineCount;
  case cudaDevAttrMaxPitch: return (int)p.memPitch;
  case cudaDevAttrTextureAlignment: return (int)p.textureAlignment;
  case cudaDevAttrEccEnabled:
  case cudaDevAttrConcurrentKernels:
  case cudaDevAttrCanMapHostMemory:
  case cudaDevAttrUnifiedAddressing:
  case cudaDevAttrStreamPrioritiesSupported:
  case cudaDevAttrManagedMemory:
  case cudaDevAttrConcurrentManagedAccess:
  case cudaDevAttrComputePreemptionSupported:
  case cudaDevAttrCooperativeLaunch:
  case cudaDevAttrHostRegisterSupported:
  case cudaDevAttrMemoryPoolsSupported:
  case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
  case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED: return 1;
  default: return 0; /* optional features: absent */
  }
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device) {
  configure();
  if (device < 0 || device >= settings.devices) return fail(cudaErrorInvalidDevice);
  *value = device_attribute(name, device);
  return cudaSuccess;
}

/* ---- memory */

cudaError_t cudaMalloc(void **pointer, size_t size) {
  configure();
  *pointer = NULL;
  if (!settings.devices) return fail(cudaErrorNoDevice);
  context_create(current);
  if (!size) return cudaSuccess;
  *pointer = device_alloc(current, size);
  trace("cudaMalloc(%zu) on %d -> %p", size, current, *pointer);
  return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
static cudaError_t release(void *pointer) {
  return !pointer || range_drop(pointer) ? cudaSuccess : fail(cudaErrorInvalidValue);
}
cudaError_t cudaFree(void *pointer) {
  configure();
  context_create(current); /* cudaFree(0) is the usual way to ask for one */
  trace("cudaFree(%p)", pointer);
  return release(pointer);
}
cudaError_t cudaMallocAsync(void **pointer, size_t size, cudaStream_t stream UNUSED) {
  return cudaMalloc(pointer, size);
}
cudaError_t cudaFreeAsync(void *pointer, cudaStream_t stream UNUSED) { return release(pointer); }
cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
  configure();
  if (!settings.devices) return fail(cudaErrorNoDevice);
  context_create(current);
  device_memory(current, available, total);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags UNUSED) {
  configure();
  *pointer = host_alloc(current, size);
  return *pointer ? cudaSuccess : fail(cudaErrorMemoryAllocation);
}
cudaError_t cudaFreeHost(void *pointer) { return release(pointer); }
cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags UNUSED) {
  configure();
  host_register(current, pointer, size);
  return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *pointer) { return release(pointer); }

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *out, const void *pointer) {
  struct range range;
  memset(out, 0, sizeof *out);
  out->hostPointer = (void *)pointer;
  out->device = -1; /* memory that CUDA does not know */
  if (!range_find(pointer, &range)) return cudaSuccess;
  bool on_device = range.kind == DEVICE_MEMORY || range.kind == RESERVED_ADDRESSES;
  out->type = on_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
  out->device = range.device;
  out->devicePointer = (void *)pointer;
  if (on_device) out->hostPointer = NULL;
  return cudaSuccess;
}

/* ---- copies
 * Device memory is host memory here, so a copy is a memmove in any direction. Copies to the host are always made.
 * Copies to a device are made up to a limit, by default none: no kernel ever overwrites what they leave, so a later
 * tensor in the same block would read as if it held that. With none made every device value is zero, and every run
 * reads the same. */

static cudaError_t copy(void *to, const void *from, size_t size) {
  struct range range;
  configure();
  bool to_device = range_find(to, &range) && range.kind != HOST_MEMORY && range.kind != REGISTERED_MEMORY;
  if (!to_device && answered(to, size)) return cudaSuccess;
  bool kept = !to_device || (size <= settings.copy_limit && !holds());
  if (kept && size) memmove(to, from, size);
  bool from_device = range_find(from, &range) && range.kind != HOST_MEMORY && range.kind != REGISTERED_MEMORY;
  if (kept && to_device && !from_device) note_copy(to); /* of a device's bytes it is not known who wrote them */
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind UNUSED) {
  return copy(to, from, size);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind UNUSED,
                            cudaStream_t stream UNUSED) {
  return copy(to, from, size);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int to_device UNUSED, const void *from, int from_device UNUSED, size_t size,
                                cudaStream_t stream UNUSED) {
  return copy(to, from, size);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind UNUSED, cudaStream_t stream UNUSED) {
  for (size_t row = 0; row < height; row++)
    copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *at, int value, size_t size) {
  configure();
  if (size && size <= settings.copy_limit && !holds()) memset(at, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t stream UNUSED) {
  return cudaMemset(at, value, size);
}
cudaError_t cudaMemcpyToSymbol(const void *symbol UNUSED, const void *from UNUSED, size_t size UNUSED,
                               size_t offset UNUSED, enum cudaMemcpyKind kind UNUSED) {
  return cudaSuccess;
}
cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) { return *address = (void *)symbol, cudaSuccess; }
