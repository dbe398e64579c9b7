/* The CUDA runtime, part two: streams, events and graph capture.
 * Work completes the moment it is asked for, so synchronising and querying always succeed. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <stdatomic.h>
#include <time.h>

struct CUstream_st {
  int priority, device;
  unsigned long long capture;
};
struct CUevent_st {
  struct timespec recorded;
  unsigned long long capture;
  struct launches before;
};

static bool is_handle(cudaStream_t stream) { return (uintptr_t)stream > 2; } /* 0, 1, 2 are the default streams */

/* ---- streams: a later one has a higher address. torch's allocator sorts what it caches by that, and frees it so. */

enum { ORDERED = 4096 };
static struct CUstream_st ordered[ORDERED];
static _Atomic unsigned made;

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags UNUSED, int priority) {
  configure();
  context_create(device_current());
  unsigned index = atomic_fetch_add(&made, 1);
  *stream = index < ORDERED ? &ordered[index] : calloc(1, sizeof **stream);
  (*stream)->priority = priority;
  (*stream)->device = device_current();
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  if (stream < ordered || stream >= ordered + ORDERED) free(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = is_handle(stream) ? stream->priority : 0;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream UNUSED) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream UNUSED) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags UNUSED) {
  if (is_handle(stream) && event && event->capture) stream->capture = event->capture; /* a capture forks */
  return cudaSuccess;
}
cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t callback, void *data,
                                  unsigned flags UNUSED) {
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream UNUSED, cudaHostFn_t function, void *data) {
  return function(data), cudaSuccess;
}

/* ---- graph capture: only the state that torch's allocator looks at; the graph itself is empty */

static unsigned long long capture_active, capture_last; /* the number of the capture in progress; 0: none */

static unsigned long long capture_of(cudaStream_t stream) {
  return is_handle(stream) && capture_active && stream->capture == capture_active ? capture_active : 0;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode UNUSED) {
  if (!is_handle(stream)) return fail(cudaErrorStreamCaptureUnsupported);
  stream->capture = capture_active = ++capture_last;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream UNUSED, cudaGraph_t *graph) {
  capture_active = 0;
  *graph = calloc(1, 64);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = capture_of(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
/* CUDA 12 maps this name to the one of the second version, which has no edges. */
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes,
#if CUDART_VERSION >= 13000
                                     const cudaGraphEdgeData **edges,
#endif
                                     size_t *count) {
  cudaStreamIsCapturing(stream, status);
  if (id) *id = capture_of(stream);
  if (graph) *graph = NULL;
  if (nodes) *nodes = NULL;
#if CUDART_VERSION >= 13000
  if (edges) *edges = NULL;
#endif
  if (count) *count = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode UNUSED) { return cudaSuccess; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph UNUSED,
                                          unsigned long long flags UNUSED) {
  *exec = calloc(1, 64);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiateWithFlags(exec, graph, flags);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph UNUSED, cudaGraphNode_t *nodes UNUSED, size_t *count) {
  *count = 1; /* torch warns about an empty graph */
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return free(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return free(exec), cudaSuccess; }

/* ---- events: the host's clock, so that elapsed times are not negative; they mean nothing else
 * Where nothing but plans of cuDNN ran in between, each takes the same time: a search for the fastest one then finds
 * the one that cuDNN's heuristics put first, in every run. */

static unsigned long long timed; /* how often that was asked */
API unsigned long long vgpu_plans_timed(void) { return __atomic_load_n(&timed, __ATOMIC_RELAXED); }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags UNUSED) {
  *event = calloc(1, sizeof **event);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return free(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  clock_gettime(CLOCK_MONOTONIC, &event->recorded);
  event->capture = capture_of(stream);
  event->before = launches_so_far();
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags UNUSED) {
  return cudaEventRecord(event, stream);
}

/* torch's watchdog of NCCL asks every 0.1 s which collectives are done, and lets go of what they held: a race, that
 * decides what a collective finds free. While it is held, no recent one is done for it. */
static _Atomic bool watchdog_held;
API void vgpu_hold_watchdog(int held) { watchdog_held = held; }

static bool is_watchdog(void) {
  static _Thread_local int known; /* 1: no, 2: yes */
  char name[16];
  if (!known) known = 1 + (!pthread_getname_np(pthread_self(), name, sizeof name) && !strcmp(name, "pt_nccl_watchdg"));
  return known == 2;
}
static bool is_recent(cudaEvent_t event) { /* nothing may wait for ever */
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec - event->recorded.tv_sec < 30;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return watchdog_held && is_watchdog() && is_recent(event) ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event UNUSED) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  unsigned long long plans = to->before.plans - from->before.plans;
  if (plans && plans == to->before.all - from->before.all) {
    __atomic_add_fetch(&timed, 1, __ATOMIC_RELAXED);
    return *milliseconds = (float)plans, cudaSuccess;
  }
  *milliseconds = (float)(to->recorded.tv_sec - from->recorded.tv_sec) * 1e3f +
                  (float)(to->recorded.tv_nsec - from->recorded.tv_nsec) * 1e-6f;
  return cudaSuccess;
}
