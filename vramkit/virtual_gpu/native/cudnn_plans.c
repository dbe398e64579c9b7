/* cuDNN's graph interface: the real cuDNN plans, and only the execution of a plan is dropped.
 * It knows how to hand cuDNN a description of the device; which engine is chosen, and the workspace it wants, is
 * cuDNN's own decision for that card.
 *
 * Since 9.8 cuDNN can choose engines and build plans without a device, from a description of one ("deviceless
 * ahead-of-time compilation"). Descriptors are cuDNN's own, handles are left out, and each descriptor that plans gets
 * the description. cuDNN's parts call these functions too; such inner calls go through unchanged. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <cudnn.h>
#include <dlfcn.h>

static struct {
  cudnnStatus_t (*create)(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *);
  cudnnStatus_t (*destroy)(cudnnBackendDescriptor_t);
  cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t);
  cudnnStatus_t (*set)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                       const void *);
  cudnnStatus_t (*get)(cudnnBackendDescriptor_t const, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t,
                       int64_t, int64_t *, void *);
  cudnnBackendDescriptor_t device;
} real;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local int inside;

/* The status of a call into the real library, made so that calls it makes in turn are known as its own. */
#define CALL(status, call) (inside++, (status) = (call), inside--, (status))

/* The members are the ones that cuDNN's error log asks for by name when one is missing. */
static int describe(char *json, size_t length) {
  struct cudaDeviceProp p;
  cudaGetDeviceProperties(&p, 0);
  return snprintf(
      json, length,
      "{\"cudaDeviceId\":0,\"deviceName\":\"%s\",\"deviceVer\":%d,\"driverVer\":%d,\"multiProcessorCount\":%d,"
      "\"totalGlobalMem\":%zu,\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],"
      "\"regsPerBlock\":65536,\"maxRegistersPerSM\":65536,\"warpSize\":32,\"maxSharedMemoryPerBlock\":%zu,"
      "\"maxSharedMemoryPerBlockOptin\":%zu,\"reservedSharedMemoryPerBlock\":%zu,\"maxCtasPerSM\":%d,"
      "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":%d,\"pciDeviceId\":0,\"isTccDriver\":0,"
      "\"supportCoopLaunch\":1,\"smClockRateKHz\":%d,\"memClockRateKHz\":%d,\"l2CacheSize\":%d}",
      p.name, 100 * p.major + 10 * p.minor, CUDART_VERSION, p.multiProcessorCount, settings.memory, p.sharedMemPerBlock,
      p.sharedMemPerBlockOptin, p.reservedSharedMemPerBlock, p.maxBlocksPerMultiProcessor,
      p.maxThreadsPerMultiProcessor, settings.clock_mhz * 1000, settings.memory_clock_mhz * 1000, p.l2CacheSize);
}

static void load(void) {
  char json[1024];
  cudnnStatus_t status;
  void *library = dlopen("libcudnn.so.9", RTLD_LAZY | RTLD_NOLOAD);
  void *create = library ? dlsym(library, "cudnnBackendCreateDescriptor") : NULL;
  if (!create) {
    fprintf(stderr, "virtual GPU: no cuDNN 9 to plan with; set torch.backends.cudnn.enabled = False\n");
    return;
  }
  *(void **)&real.create = create;
  *(void **)&real.destroy = dlsym(library, "cudnnBackendDestroyDescriptor");
  *(void **)&real.finalize = dlsym(library, "cudnnBackendFinalize");
  *(void **)&real.set = dlsym(library, "cudnnBackendSetAttribute");
  *(void **)&real.get = dlsym(library, "cudnnBackendGetAttribute");
  configure();
  int length = describe(json, sizeof json);
  if (CALL(status, real.create(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &real.device)) ||
      CALL(status, real.set(real.device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, length, json)) ||
      CALL(status, real.finalize(real.device))) {
    fprintf(stderr, "virtual GPU: cuDNN rejects the description of the device (status %d): %s\n", status, json);
    real.create = NULL;
  }
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *descriptor) {
  cudnnStatus_t status;
  if (inside) return real.create(type, descriptor);
  pthread_once(&once, load);
  if (!real.create) return CUDNN_STATUS_NOT_INITIALIZED;
  if (CALL(status, real.create(type, descriptor))) return status;
  switch (type) {
  case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
    return CALL(status, real.set(*descriptor, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                 &real.device));
  case CUDNN_BACKEND_ENGINE_DESCRIPTOR:
    return CALL(status,
                real.set(*descriptor, CUDNN_ATTR_ENGINE_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &real.device));
  case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
    return CALL(status, real.set(*descriptor, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                 &real.device));
  default: return CUDNN_STATUS_SUCCESS;
  }
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  cudnnStatus_t status;
  return CALL(status, real.destroy(descriptor));
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  cudnnStatus_t status;
  return CALL(status, real.finalize(descriptor));
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *values) {
  cudnnStatus_t status;
  if (type == CUDNN_TYPE_HANDLE && !inside) return CUDNN_STATUS_SUCCESS;
  return CALL(status, real.set(descriptor, name, type, count, values));
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count, void *values) {
  cudnnStatus_t status;
  if (CALL(status, real.get(descriptor, name, type, wanted, count, values))) return status;
  if (!inside && name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)
    trace("a cuDNN plan wants %lld bytes of workspace", (long long)*(int64_t *)values);
  return status;
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle UNUSED, cudnnBackendDescriptor_t plan UNUSED,
                                  cudnnBackendDescriptor_t values UNUSED) {
  return (cudnnStatus_t)launched();
}
