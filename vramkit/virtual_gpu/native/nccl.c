/* NCCL: communicators and their collectives. It knows how the results of a collective come about; nothing is sent to
 * another process, and none is waited for.
 *
 * Where all ranks of a communicator are here (one, or by ncclCommInitAll one for each device: DataParallel), a
 * collective begins when the first of them calls it and is made when the last one has, on the host and at once.
 * Otherwise one rank is here, and the absent ones are its mirrors: what they send is what this one sends. That is all
 * that memory needs, for the host gives every size. So a communicator of 1,024 ranks comes about in a process that is
 * alone.
 *
 * What is larger than `copy_limit` is not moved, like every copy to a device. NCCL's own buffers on the card are not
 * charged. Types and structures are written out, because their layout is the same in every version of NCCL 2. */
#include "vgpu.h"

#include <stdatomic.h>
#include <unistd.h>

enum { OK, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE }; /* ncclResult_t */
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
struct message { /* a send without its receive, or the other way round; or one of several that are called as a group */
  struct message *next;
  const struct clique *clique;
  bool is_send;
  int sender, receiver;
  char *at;
  size_t size;
};
struct clique {
  int ranks, members;
  bool mirrored; /* only one of the ranks is here */
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
static _Atomic unsigned communicators; /* of several ranks, so far */
static _Thread_local int size_told;    /* of the next split */
static void (*tell_exchange)(const void *from, const void *to); /* NULL: nobody asks */

API const char *ncclGetLastError(struct comm *comm UNUSED) { return ""; }

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
static int create(struct comm **out, int ranks, int rank, int device) {
  configure();
  *out = NULL;
  if (rank < 0 || rank >= ranks) return INVALID_ARGUMENT;
  struct clique *clique = gather_ranks(ranks);
  if (!clique) return SYSTEM_ERROR;
  clique->mirrored = ranks > 1;
  communicators += clique->mirrored;
  return join(out, clique, rank, device);
}

/* How many communicators of several ranks there were, for the profile. */
API unsigned vgpu_communicators(void) { return communicators; }
/* How many ranks the next communicator has that this thread makes by a split. NCCL finds it by asking the others. */
API void vgpu_tell_split(int ranks) { size_told = ranks; }

/* Whom to tell where a collective of several ranks reads and writes. */
API void vgpu_on_exchange(void (*tell)(const void *from, const void *to)) { tell_exchange = tell; }

API int ncclGetUniqueId(unique_id *id) {
  static _Atomic unsigned counter;
  memset(id, 0, sizeof *id);
  snprintf(id->bytes, sizeof id->bytes, "vgpu-%d-%u", (int)getpid(), atomic_fetch_add(&counter, 1));
  return OK;
}
API int ncclCommGetUniqueId(struct comm *comm UNUSED, unique_id *id) { return ncclGetUniqueId(id); }
API int ncclCommInitRank(struct comm **out, int ranks, unique_id id UNUSED, int rank) {
  return create(out, ranks, rank, device_current());
}
API int ncclCommInitRankConfig(struct comm **out, int ranks, unique_id id UNUSED, int rank, void *config UNUSED) {
  return create(out, ranks, rank, device_current());
}
API int ncclCommInitRankScalable(struct comm **out, int ranks, int rank, int ids UNUSED, unique_id *id UNUSED,
                                 void *config UNUSED) {
  return create(out, ranks, rank, device_current());
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
/* The key is the new rank. Where nobody told the size, so many ranks as there must be at least: a gathered tensor then
 * misses the parts of the others, and nothing is written beyond it. */
API int ncclCommSplit(struct comm *comm, int color, int key, struct comm **out, void *config UNUSED) {
  int ranks = size_told > key ? size_told : key + 1;
  size_told = 0;
  *out = NULL;
  if (color == -1) return OK; /* NCCL_SPLIT_NOCOLOR */
  if (!comm->clique->mirrored) return create(out, comm->clique->ranks, comm->rank, comm->device);
  return create(out, ranks, key, comm->device);
}
API int ncclCommShrink(struct comm *comm, int *excluded, int count, struct comm **out, void *config UNUSED,
                       int flags UNUSED) {
  int rank = comm->rank;
  for (int i = 0; i < count; i++) rank -= excluded[i] < comm->rank;
  return create(out, comm->clique->ranks - count, rank, comm->device);
}
API int ncclCommGrow(struct comm *comm, int ranks, const unique_id *id UNUSED, int rank, struct comm **out,
                     void *config UNUSED) {
  return create(out, ranks, comm ? comm->rank : rank, comm ? comm->device : device_current());
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
static void deliver(void);
static _Thread_local int open_groups;
API int ncclGroupStart(void) { return open_groups++, OK; }
API int ncclGroupEnd(void) {
  if (open_groups && !--open_groups) deliver();
  return OK;
}

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
  long double total = number_load(call->parts[0].from, index, call->type), next;
  long double scale = call->operation < SCALED_SUM ? 1 : scales[(call->operation - SCALED_SUM) % SCALES];
  if (call->operation == AVERAGE) scale = 1.0L / ranks;
  for (int i = 1; i < ranks; i++) {
    next = number_load(call->parts[i].from, index, call->type);
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
  const size_t size = call->count * number_size(call->type);
  const bool scatters = call->what == REDUCE_SCATTER, copies = ranks == 1 && call->operation < SCALED_SUM;
  for (int rank = 0; rank < ranks && copies; rank++) move(call->parts[rank].to, call->parts[rank].from, size);
  if (copies || !moves(size) || call->type >= FLOAT8E4M3) return;
  for (int part = 0; part < (scatters ? ranks : 1); part++)
    for (size_t i = 0; i < call->count; i++) {
      long double value = reduced(call, ranks, call->count * (size_t)part + i);
      for (int rank = 0; rank < ranks; rank++)
        if (scatters ? rank == part : call->what == ALL_REDUCE || rank == call->root)
          number_store(call->parts[rank].to, i, call->type, value);
    }
  for (int rank = 0; rank < ranks; rank++)
    if (call->what != REDUCE || rank == call->root) written(call->parts[rank].to);
}
static void make_result(const struct call *call, int ranks) {
  const size_t size = call->count * number_size(call->type);
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

/* ---- of mirrors */

static long double reduced_of_equals(int operation, int ranks, long double each) {
  long double product = 1;
  switch (operation) {
  case PROD:
    for (int i = 0; i < ranks; i++) product *= each;
    return product;
  case MAX:
  case MIN:
  case AVERAGE: return each;
  default: return each * ranks * (operation < SCALED_SUM ? 1 : scales[(operation - SCALED_SUM) % SCALES]);
  }
}
/* Whole numbers are sizes, shapes and pickled objects, which programs read. Of floating-point numbers all ranks' parts
 * together have to be as small as a copy: shards gathered from a thousand ranks would take up this machine's memory. */
static bool gathers(size_t size, int ranks, int type) {
  return moves(type <= UINT64 || settings.copy_limit == SIZE_MAX ? size : size * (size_t)ranks);
}
static void mirror(const struct comm *comm, const struct call *call, const char *from, char *to) {
  const int ranks = comm->clique->ranks;
  const size_t size = call->count * number_size(call->type), part = size * (size_t)comm->rank;
  const bool is_root = call->root == comm->rank;
  switch (call->what) {
  case BROADCAST: /* from an absent root comes what is there */
    move(to, from, size);
    return;
  case SCATTER:
    if (is_root) move(to, from + part, size);
    return;
  case GATHER:
    if (!is_root) return; /* fall through */
  case ALL_GATHER:
  case ALL_TO_ALL:
    for (int i = 0; i < ranks && gathers(size, ranks, call->type); i++)
      move(to + size * (size_t)i, call->what == ALL_TO_ALL ? from + part : from, size);
    return;
  default:
    if (!moves(size) || call->type >= FLOAT8E4M3 || (call->what == REDUCE && !is_root)) return;
    for (size_t i = 0, first = call->what == REDUCE_SCATTER ? call->count * (size_t)comm->rank : 0; i < call->count; i++)
      number_store(to, i, call->type,
                   reduced_of_equals(call->operation, ranks, number_load(from, first + i, call->type)));
    written(to);
  }
}

static int collect(struct comm *comm, enum collective what, const void *from, void *to, size_t count, int type,
                   int operation, int root) {
  struct clique *clique = comm->clique;
  if (root < 0 || root >= clique->ranks) return INVALID_ARGUMENT;
  launched();
  if (clique->mirrored) {
    struct call call = {.what = what, .count = count, .type = type, .operation = operation, .root = root};
    mirror(comm, &call, from, to);
    void (*tell)(const void *, const void *) = tell_exchange;
    if (tell) tell(from, to);
    return OK;
  }
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
  scales[index] = number_load(scalar, 0, type);
  return *operation = SCALED_SUM + (int)index, OK;
}
API int ncclRedOpDestroy(int operation UNUSED, member comm UNUSED) { return OK; }

/* ---- from rank to rank */

/* What this rank sends and receives in the group that is open, where the others are its mirrors. */
static _Thread_local struct message *grouped, **grouped_end;

static int note_message(struct message message) {
  struct message *each = malloc(sizeof *each);
  if (!each) return SYSTEM_ERROR;
  *each = message;
  each->next = NULL;
  if (!grouped) grouped_end = &grouped;
  *grouped_end = each;
  grouped_end = &each->next;
  return OK;
}
static bool are_alike(const struct message *one, const struct message *other) {
  return one->clique == other->clique && one->size == other->size;
}
/* The number-th send that is as large as a receive: to one rank, or to any (-1). NULL: there are none to it; where they
 * are fewer, the last of them. */
static const struct message *sent(const struct message *received, int to, int number) {
  const struct message *found = NULL;
  for (const struct message *each = grouped; each && number >= 0; each = each->next)
    if (each->is_send && are_alike(each, received) && (to < 0 || each->receiver == to)) found = each, number--;
  return found;
}
/* A mirror sends what this rank sends to itself, as in an all-to-all; or else what it sends to that rank, or to another,
 * as in a ring. */
static void deliver(void) {
  for (const struct message *each = grouped; each; each = each->next) {
    if (each->is_send || !moves(each->size)) continue;
    int number = 0;
    for (const struct message *before = grouped; before != each; before = before->next)
      number += !before->is_send && are_alike(before, each) && before->sender == each->sender;
    const struct message *from = sent(each, each->receiver, number);
    if (!from) from = sent(each, each->sender, number);
    if (!from) from = sent(each, -1, number);
    if (from) move(each->at, from->at, each->size);
  }
  for (struct message *each; (each = grouped); free(each)) grouped = each->next;
}

static int pass(struct comm *comm, bool is_send, int sender, int receiver, char *at, size_t size) {
  struct clique *clique = comm->clique;
  if (sender < 0 || receiver < 0 || sender >= clique->ranks || receiver >= clique->ranks) return INVALID_ARGUMENT;
  launched();
  if (clique->mirrored && open_groups)
    return note_message((struct message){NULL, clique, is_send, sender, receiver, at, size});
  if (clique->mirrored && sender != receiver) return OK; /* the other one is absent */
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
    **each = (struct message){NULL, clique, is_send, sender, receiver, at, size};
  pthread_mutex_unlock(&lock);
  return known ? OK : SYSTEM_ERROR;
}
API int ncclSend(const void *from, size_t count, int type, int peer, member comm, cudaStream_t stream UNUSED) {
  return pass(comm, true, comm->rank, peer, (char *)from, count * number_size(type));
}
API int ncclRecv(void *to, size_t count, int type, int peer, member comm, cudaStream_t stream UNUSED) {
  return pass(comm, false, peer, comm->rank, to, count * number_size(type));
}
