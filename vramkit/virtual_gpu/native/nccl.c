/* NCCL: communicators whose ranks are all in this process, and their collectives.
 * It knows how the results of a collective come about; nothing is sent to another process. A communicator is made of
 * one rank, or by ncclCommInitAll of one for each device (DataParallel); one with ranks elsewhere is refused.
 *
 * A collective begins when the first rank calls it and is made when the last one has, on the host and at once. What is
 * larger than `copy_limit` is not moved, like every copy to a device. NCCL's own buffers on the card are not charged.
 * Types and structures are written out, because their layout is the same in every version of NCCL 2. */
#include "vgpu.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <unistd.h>

enum { OK, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE }; /* ncclResult_t */
enum { INT8, UINT8, INT32, UINT32, INT64, UINT64, HALF, FLOAT, DOUBLE, BFLOAT16, FLOAT8E4M3, FLOAT8E5M2 };
enum { SUM, PROD, MAX, MIN, AVERAGE, SCALED_SUM }; /* ncclRedOp_t; from SCALED_SUM on, one for each scale */
enum { SCALES = 64 };

enum collective { ALL_REDUCE, REDUCE, REDUCE_SCATTER, BROADCAST, ALL_GATHER, ALL_TO_ALL, GATHER, SCATTER };

struct part {
  const char *from;
  char *to;
  bool joined;
};
struct call { /* a collective that not every rank has joined yet */
  struct call *next;
  enum collective what;
  size_t count;
  int type, operation, root, missing;
  struct part parts[MAX_DEVICES];
};
struct message { /* a send without its receive, or the other way round */
  struct message *next;
  bool is_send;
  int sender, receiver;
  char *at;
  size_t size;
};
struct clique {
  int ranks, members;
  struct call *calls;
  struct message *messages;
};
struct comm {
  struct clique *clique;
  int rank, device;
};
typedef struct {
  char bytes[128];
} unique_id;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long double scales[SCALES];
static _Thread_local char last_error[256];

API const char *ncclGetLastError(struct comm *comm UNUSED) { return last_error; }

static int refuse(const char *format, ...) {
  va_list args;
  va_start(args, format);
  vsnprintf(last_error, sizeof last_error, format, args);
  va_end(args);
  limit_met("ncclCommInitRank");
  trace("%s", last_error);
  return INVALID_USAGE;
}

/* ---- communicators */

static int join(struct comm **out, struct clique *clique, int rank, int device) {
  struct comm *comm = malloc(sizeof *comm);
  if (!comm) return SYSTEM_ERROR;
  *comm = (struct comm){clique, rank, device};
  clique->members++;
  context_create(device);
  trace("NCCL communicator: rank %d of %d on device %d", rank, clique->ranks, device);
  return *out = comm, OK;
}
static struct clique *gather_ranks(int ranks) {
  struct clique *clique = calloc(1, sizeof *clique);
  if (clique) clique->ranks = ranks;
  return clique;
}
static int create(struct comm **out, int ranks, int rank) {
  configure();
  *out = NULL;
  if (rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
  if (ranks > 1)
    return refuse("vramkit's virtual GPU has NCCL for one rank only, and this communicator is of %d ranks", ranks);
  struct clique *clique = gather_ranks(1);
  return clique ? join(out, clique, 0, device_current()) : SYSTEM_ERROR;
}

API int ncclGetUniqueId(unique_id *id) {
  static _Atomic unsigned counter;
  memset(id, 0, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "vgpu-%d-%u", (int)getpid(), atomic_fetch_add(&counter, 1));
  return OK;
}
API int ncclCommGetUniqueId(struct comm *comm UNUSED, unique_id *id) { return ncclGetUniqueId(id); }
API int ncclCommInitRank(struct comm **out, int ranks, unique_id id UNUSED, int rank) {
  return create(out, ranks, rank);
}
API int ncclCommInitRankConfig(struct comm **out, int ranks, unique_id id UNUSED, int rank, void *config UNUSED) {
  return create(out, ranks, rank);
}
API int ncclCommInitRankScalable(struct comm **out, int ranks, int rank, int ids UNUSED, unique_id *id UNUSED,
                                 void *config UNUSED) {
  return create(out, ranks, rank);
}
API int ncclCommInitAll(struct comm **out, int devices, const int *list) {
  configure();
  if (devices < 1 || devices > settings.devices) return INVALID_ARGUMENT;
  struct clique *clique = gather_ranks(devices);
  if (!clique) return SYSTEM_ERROR;
  for (int i = 0, result; i < devices; i++)
    if ((result = join(&out[i], clique, i, list ? list[i] : i))) return result;
  return OK;
}
/* Of one rank, which is what every color leaves; others would have to agree on the colors. */
API int ncclCommSplit(struct comm *comm, int color, int key UNUSED, struct comm **out, void *config UNUSED) {
  *out = NULL;
  if (color == -1) return OK; /* NCCL_SPLIT_NOCOLOR */
  return create(out, comm->clique->ranks, comm->rank);
}
API int ncclCommShrink(struct comm *comm, int *excluded UNUSED, int count, struct comm **out, void *config UNUSED,
                       int flags UNUSED) {
  return create(out, comm->clique->ranks - count, comm->rank);
}
API int ncclCommGrow(struct comm *comm UNUSED, int ranks, const unique_id *id UNUSED, int rank, struct comm **out,
                     void *config UNUSED) {
  return create(out, ranks, rank);
}

API int ncclCommDestroy(struct comm *comm) {
  if (!comm) return OK;
  pthread_mutex_lock(&lock);
  struct clique *clique = comm->clique;
  if (!--clique->members) {
    for (struct call *call; (call = clique->calls); free(call)) clique->calls = call->next;
    for (struct message *each; (each = clique->messages); free(each)) clique->messages = each->next;
    free(clique);
  }
  pthread_mutex_unlock(&lock);
  return discard(comm);
}
API int ncclCommAbort(struct comm *comm) { return ncclCommDestroy(comm); }
API int ncclCommFinalize(struct comm *comm UNUSED) { return OK; }
API int ncclCommCount(const struct comm *comm, int *count) { return *count = comm->clique->ranks, OK; }
API int ncclCommUserRank(const struct comm *comm, int *rank) { return *rank = comm->rank, OK; }
API int ncclCommCuDevice(const struct comm *comm, int *device) { return *device = comm->device, OK; }
API int ncclCommGetAsyncError(struct comm *comm UNUSED, int *error) { return *error = OK; }
API int ncclCommMemStats(struct comm *comm UNUSED, int what UNUSED, uint64_t *value) { return *value = 0, OK; }
API int ncclGroupStart(void) { return OK; }
API int ncclGroupEnd(void) { return OK; }

/* ---- memory: what ncclMemAlloc gives is the driver's, outside torch's allocator unless a MemPool asks for it */

API int ncclMemAlloc(void **pointer, size_t size) {
  configure();
  context_create(device_current());
  *pointer = size ? device_alloc(device_current(), size) : NULL;
  trace("ncclMemAlloc(%zu) -> %p", size, *pointer);
  return *pointer || !size ? OK : CUDA_ERROR;
}
API int ncclMemFree(void *pointer) { return !pointer || range_drop(pointer) ? OK : INVALID_ARGUMENT; }
API int ncclCommRegister(const struct comm *comm UNUSED, void *buffer, size_t size UNUSED, void **handle) {
  return *handle = buffer, OK;
}
API int ncclCommWindowRegister(struct comm *comm UNUSED, void *buffer, size_t size UNUSED, void **window,
                               int flags UNUSED) {
  return *window = buffer, OK;
}
API int ncclWinGetUserPtr(struct comm *comm UNUSED, void *window, void **pointer) { return *pointer = window, OK; }

/* ---- numbers of every type, one at a time */

static size_t unit(int type) {
  switch (type) {
  case INT64:
  case UINT64:
  case DOUBLE: return 8;
  case INT32:
  case UINT32:
  case FLOAT: return 4;
  case HALF:
  case BFLOAT16: return 2;
  default: return 1;
  }
}

static float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
static float of_half(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  return of_bits(sign | to_bits(of_bits(rest << 13) * 0x1p112f));
}
/* Adding a power of two makes the adder round where the shorter mantissa ends, to even. */
static uint16_t to_half(float value) {
  uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (rest < 0x38800000) return (uint16_t)(sign | (to_bits(of_bits(rest) + 0.5f) & 0xffff));
  return (uint16_t)(sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13);
}

static long double load(const char *at, size_t index, int type) {
  switch (type) {
  case INT8: return ((const int8_t *)at)[index];
  case INT32: return ((const int32_t *)at)[index];
  case UINT32: return ((const uint32_t *)at)[index];
  case INT64: return ((const int64_t *)at)[index];
  case UINT64: return ((const uint64_t *)at)[index];
  case HALF: return of_half(((const uint16_t *)at)[index]);
  case FLOAT: return ((const float *)at)[index];
  case DOUBLE: return ((const double *)at)[index];
  case BFLOAT16: return of_bits((uint32_t)((const uint16_t *)at)[index] << 16);
  default: return ((const uint8_t *)at)[index];
  }
}
static void store(char *at, size_t index, int type, long double value) {
  uint32_t bits = to_bits((float)value);
  switch (type) {
  case INT8: ((int8_t *)at)[index] = (int8_t)value; return;
  case INT32: ((int32_t *)at)[index] = (int32_t)value; return;
  case UINT32: ((uint32_t *)at)[index] = (uint32_t)value; return;
  case INT64: ((int64_t *)at)[index] = (int64_t)value; return;
  case UINT64: ((uint64_t *)at)[index] = (uint64_t)value; return;
  case HALF: ((uint16_t *)at)[index] = to_half((float)value); return;
  case FLOAT: ((float *)at)[index] = (float)value; return;
  case DOUBLE: ((double *)at)[index] = (double)value; return;
  case BFLOAT16: ((uint16_t *)at)[index] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); return;
  default: ((uint8_t *)at)[index] = (uint8_t)value; return;
  }
}

/* ---- collectives */

static bool moves(size_t size) { return size && size <= settings.copy_limit; }
/* Whether what was sent had been computed is known of torch.distributed's collectives alone, in ../values/. */
static void written(const char *to) {
  if (settings.copy_limit == SIZE_MAX) note_copy(to);
}
static void move(char *to, const char *from, size_t size) {
  if (!to || !from || to == from || !moves(size)) return;
  memmove(to, from, size);
  written(to);
}

/* One element of the result, of every rank's element at that place. */
static long double reduced(const struct call *call, int ranks, size_t index) {
  long double total = load(call->parts[0].from, index, call->type), next;
  long double scale = call->operation < SCALED_SUM ? 1 : scales[(call->operation - SCALED_SUM) % SCALES];
  if (call->operation == AVERAGE) scale = 1.0L / ranks;
  for (int i = 1; i < ranks; i++) {
    next = load(call->parts[i].from, index, call->type);
    switch (call->operation) {
    case PROD: total *= next; break;
    case MAX: total = next > total ? next : total; break;
    case MIN: total = next < total ? next : total; break;
    default: total += next;
    }
  }
  return total * scale;
}
static void reduce(const struct call *call, int ranks) {
  const size_t size = call->count * unit(call->type);
  const bool scatters = call->what == REDUCE_SCATTER, copies = ranks == 1 && call->operation < SCALED_SUM;
  for (int rank = 0; rank < ranks && copies; rank++) move(call->parts[rank].to, call->parts[rank].from, size);
  if (copies || !moves(size) || call->type >= FLOAT8E4M3) return;
  for (int part = 0; part < (scatters ? ranks : 1); part++)
    for (size_t i = 0; i < call->count; i++) {
      long double value = reduced(call, ranks, call->count * (size_t)part + i);
      for (int rank = 0; rank < ranks; rank++)
        if (scatters ? rank == part : call->what == ALL_REDUCE || rank == call->root)
          store(call->parts[rank].to, i, call->type, value);
    }
  for (int rank = 0; rank < ranks; rank++)
    if (call->what != REDUCE || rank == call->root) written(call->parts[rank].to);
}
static void make_result(const struct call *call, int ranks) {
  const size_t size = call->count * unit(call->type);
  const struct part *parts = call->parts, *root = &parts[call->root];
  if (call->what <= REDUCE_SCATTER) {
    reduce(call, ranks);
    return;
  }
  for (int i = 0; i < ranks; i++) {
    if (call->what == BROADCAST) move(parts[i].to, root->from, size);
    if (call->what == SCATTER) move(parts[i].to, root->from + size * (size_t)i, size);
    if (call->what == GATHER) move(root->to + size * (size_t)i, parts[i].from, size);
    for (int j = 0; j < ranks && call->what == ALL_GATHER; j++)
      move(parts[i].to + size * (size_t)j, parts[j].from, size);
    for (int j = 0; j < ranks && call->what == ALL_TO_ALL; j++)
      move(parts[i].to + size * (size_t)j, parts[j].from + size * (size_t)i, size);
  }
}

static int collect(struct comm *comm, enum collective what, const void *from, void *to, size_t count, int type,
                   int operation, int root) {
  struct clique *clique = comm->clique;
  if (root < 0 || root >= clique->ranks) return INVALID_ARGUMENT;
  launched();
  pthread_mutex_lock(&lock);
  struct call **at = &clique->calls;
  while (*at && (*at)->parts[comm->rank].joined) at = &(*at)->next;
  if (!*at && (*at = calloc(1, sizeof **at)))
    **at = (struct call){.what = what, .count = count, .type = type, .operation = operation, .root = root,
                         .missing = clique->ranks};
  struct call *call = *at;
  if (call) {
    call->parts[comm->rank] = (struct part){from, to, true};
    if (!--call->missing) {
      *at = call->next;
      make_result(call, clique->ranks);
      free(call);
    }
  }
  pthread_mutex_unlock(&lock);
  return call ? OK : SYSTEM_ERROR;
}

typedef struct comm *member;
API int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, member comm,
                      cudaStream_t stream UNUSED) {
  return collect(comm, ALL_REDUCE, from, to, count, type, operation, 0);
}
API int ncclReduce(const void *from, void *to, size_t count, int type, int operation, int root, member comm,
                   cudaStream_t stream UNUSED) {
  return collect(comm, REDUCE, from, to, count, type, operation, root);
}
API int ncclReduceScatter(const void *from, void *to, size_t count, int type, int operation, member comm,
                          cudaStream_t stream UNUSED) {
  return collect(comm, REDUCE_SCATTER, from, to, count, type, operation, 0);
}
API int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, member comm,
                      cudaStream_t stream UNUSED) {
  return collect(comm, BROADCAST, from, to, count, type, 0, root);
}
API int ncclBcast(void *buffer, size_t count, int type, int root, member comm, cudaStream_t stream UNUSED) {
  return collect(comm, BROADCAST, buffer, buffer, count, type, 0, root);
}
API int ncclAllGather(const void *from, void *to, size_t count, int type, member comm, cudaStream_t stream UNUSED) {
  return collect(comm, ALL_GATHER, from, to, count, type, 0, 0);
}
API int ncclAlltoAll(const void *from, void *to, size_t count, int type, member comm, cudaStream_t stream UNUSED) {
  return collect(comm, ALL_TO_ALL, from, to, count, type, 0, 0);
}
API int ncclGather(const void *from, void *to, size_t count, int type, int root, member comm,
                   cudaStream_t stream UNUSED) {
  return collect(comm, GATHER, from, to, count, type, 0, root);
}
API int ncclScatter(const void *from, void *to, size_t count, int type, int root, member comm,
                    cudaStream_t stream UNUSED) {
  return collect(comm, SCATTER, from, to, count, type, 0, root);
}

/* scalar: in host memory or on a device, which is readable as well */
API int ncclRedOpCreatePreMulSum(int *operation, void *scalar, int type, int residence UNUSED, member comm UNUSED) {
  static _Atomic unsigned made;
  unsigned index = atomic_fetch_add(&made, 1) % SCALES;
  scales[index] = load(scalar, 0, type);
  return *operation = SCALED_SUM + (int)index, OK;
}
API int ncclRedOpDestroy(int operation UNUSED, member comm UNUSED) { return OK; }

/* ---- from rank to rank */

static int pass(struct comm *comm, bool is_send, int sender, int receiver, char *at, size_t size) {
  struct clique *clique = comm->clique;
  if (sender < 0 || receiver < 0 || sender >= clique->ranks || receiver >= clique->ranks) return INVALID_ARGUMENT;
  launched();
  pthread_mutex_lock(&lock);
  struct message **each = &clique->messages;
  while (*each && ((*each)->is_send == is_send || (*each)->sender != sender || (*each)->receiver != receiver))
    each = &(*each)->next;
  struct message *other = *each;
  bool known = true;
  if (other) {
    *each = other->next;
    move(is_send ? other->at : at, is_send ? at : other->at, size < other->size ? size : other->size);
    free(other);
  } else if ((known = (*each = malloc(sizeof **each)) != NULL))
    **each = (struct message){NULL, is_send, sender, receiver, at, size};
  pthread_mutex_unlock(&lock);
  return known ? OK : SYSTEM_ERROR;
}
API int ncclSend(const void *from, size_t count, int type, int peer, member comm, cudaStream_t stream UNUSED) {
  return pass(comm, true, comm->rank, peer, (char *)from, count * unit(type));
}
API int ncclRecv(void *to, size_t count, int type, int peer, member comm, cudaStream_t stream UNUSED) {
  return pass(comm, false, peer, comm->rank, to, count * unit(type));
}
