/* cuDNN's graph interface: the real cuDNN plans, and only the execution of a plan is dropped.
 * It knows how to hand cuDNN a description of the device; which engine is chosen, and the workspace it wants, is
 * cuDNN's own decision for that card.
 *
 * Since 9.8 cuDNN can choose engines and build plans without a device, from a description of one ("deviceless
 * ahead-of-time compilation"). Descriptors are cuDNN's own, handles are left out, and each descriptor that plans gets
 * the description. cuDNN's parts call these functions too; such inner calls go through unchanged.
 *
 * Some engines compile their kernel when a plan is made, which takes a second, and a search for the fastest
 * (`torch.backends.cudnn.benchmark`) makes such a plan for every layer. Nothing will run it, so it is not made: what it
 * would want of workspace its engine's configuration says, with the same number as the plan does. */
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
  answer_products(create);
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

/* ---- clusters
 * From Hopper on, blocks can form clusters, which lie on the multiprocessors of one group (GPC). How many clusters fit
 * decides how a kernel splits its work, and so its workspace. cuDNN counts each group's multiprocessors when it makes a
 * handle. A description has no member for the counts, and without them cuDNN plans for one group of 18; but its libraries
 * ask each other, by the name below, whether the counts are there. This answers in their place, and puts them there.
 * Assumed: of 132, what fits all that an H200 asked for (groups that lack some, and pairs that are in none); of others,
 * groups that are equal but for a pair. Which ones are cut differs from board to board. */

enum { MOST_GROUPS = 24, MOST_OF_A_GROUP = 18, OF_GH100 = 132 };
API bool _ZN8mb_tools11hasValidVSLERKSt5arrayIiLm24EE(int counts[MOST_GROUPS]) {
  static const int gh100[MOST_GROUPS] = {18, 18, 16, 16, 16, 16, 14, 14, 2, 2};
  configure();
  int groups = (settings.multiprocessors + MOST_OF_A_GROUP - 1) / MOST_OF_A_GROUP, pairs = settings.multiprocessors / 2;
  if (settings.major < 9 || groups > MOST_GROUPS) return counts[0];
  bool known = settings.major == 9 && settings.multiprocessors == OF_GH100;
  for (int i = 0; i < MOST_GROUPS; i++)
    counts[i] = known ? gh100[i] : i < groups ? 2 * (pairs / groups + (i < pairs % groups)) : 0;
  return true;
}

/* ---- plans that were left uncompiled */

struct plan {
  struct plan *next;
  cudnnBackendDescriptor_t descriptor;
  int64_t workspace;
};
static struct plan *uncompiled;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local cudnnBackendDescriptor_t planned, configuration; /* the last plan, and what it is to run */

/* The place that points to a plan, or to the end; the lock is held. */
static struct plan **place_of(cudnnBackendDescriptor_t descriptor) {
  struct plan **at = &uncompiled;
  while (*at && (*at)->descriptor != descriptor) at = &(*at)->next;
  return at;
}
static bool compiles(cudnnBackendDescriptor_t config) {
  cudnnBackendDescriptor_t engine;
  cudnnBackendBehaviorNote_t notes[CUDNN_BEHAVIOR_NOTE_TYPE_COUNT];
  int64_t count = 0;
  cudnnStatus_t status;
  if (CALL(status, real.create(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine))) return false;
  if (CALL(status, real.get(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine)) ||
      CALL(status, real.get(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                            CUDNN_BEHAVIOR_NOTE_TYPE_COUNT, &count, notes)))
    count = 0;
  (void)CALL(status, real.destroy(engine));
  for (int64_t i = 0; i < count && i < CUDNN_BEHAVIOR_NOTE_TYPE_COUNT; i++)
    if (notes[i] == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) return true;
  return false;
}
static bool leave_uncompiled(cudnnBackendDescriptor_t descriptor) {
  int64_t count, workspace;
  cudnnStatus_t status;
  if (descriptor != planned || !compiles(configuration)) return false;
  if (CALL(status,
           real.get(configuration, CUDNN_ATTR_ENGINECFG_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &count, &workspace)))
    return false;
  struct plan *plan = malloc(sizeof *plan);
  if (!plan) return false;
  pthread_mutex_lock(&lock);
  *plan = (struct plan){uncompiled, descriptor, workspace};
  uncompiled = plan;
  pthread_mutex_unlock(&lock);
  return true;
}
static bool is_uncompiled(cudnnBackendDescriptor_t descriptor, int64_t *workspace) {
  pthread_mutex_lock(&lock);
  struct plan *plan = *place_of(descriptor);
  if (plan) *workspace = plan->workspace;
  pthread_mutex_unlock(&lock);
  return plan;
}
static void forget(cudnnBackendDescriptor_t descriptor) {
  pthread_mutex_lock(&lock);
  struct plan **at = place_of(descriptor), *plan = *at;
  if (plan) *at = plan->next;
  pthread_mutex_unlock(&lock);
  free(plan);
  if (descriptor == planned) planned = NULL;
}

/* ---- descriptors */

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor) {
  cudnnStatus_t status;
  if (!inside) forget(descriptor);
  return CALL(status, real.destroy(descriptor));
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor) {
  cudnnStatus_t status;
  if (!inside && leave_uncompiled(descriptor)) return CUDNN_STATUS_SUCCESS;
  return CALL(status, real.finalize(descriptor));
}
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *values) {
  cudnnStatus_t status;
  if (type == CUDNN_TYPE_HANDLE && !inside) return CUDNN_STATUS_SUCCESS;
  if (name == CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG && !inside)
    planned = descriptor, configuration = *(const cudnnBackendDescriptor_t *)values;
  return CALL(status, real.set(descriptor, name, type, count, values));
}
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t *count, void *values) {
  cudnnStatus_t status;
  bool asks_size = !inside && name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE;
  if (asks_size && is_uncompiled(descriptor, values)) {
    if (count) *count = 1;
  } else if (CALL(status, real.get(descriptor, name, type, wanted, count, values)))
    return status;
  if (asks_size)
    trace("a cuDNN plan wants %lld bytes of workspace", (long long)*(int64_t *)values);
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle UNUSED, cudnnBackendDescriptor_t plan UNUSED,
                                  cudnnBackendDescriptor_t values UNUSED) {
  return plan_launched(), CUDNN_STATUS_SUCCESS;
}
