/* Device memory: which addresses are handed out, and how much of each device is taken.
 * It knows capacities, contexts and address order; it knows no CUDA call by name.
 *
 * Each device owns one stretch of address space, reserved without backing; a page costs RAM only once the host
 * writes to it, so a device of 80 GiB lives in a few MiB. Addresses must not depend on mmap's mood: torch's
 * allocator breaks ties between blocks of equal size by address. So new memory is placed by first fit: from the
 * stretch's upper end downwards (as drivers mostly do), or from its lower end upwards. A freed range is a gap like
 * any other, so the same program gets the same addresses in every run. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <sys/mman.h>

/* All devices share 64 TiB of addresses, between FIRST_BASE and where Linux puts programs: far from heap and libraries,
 * so that every run gets the same place. A quarter is for cudaMalloc, the rest for cuMemAddressReserve: expandable
 * segments reserve 9/8 of the device for each pool. */
#define FIRST_BASE  ((uintptr_t)0x100000000000)
#define ALL_MALLOCS (16 * TIB)
#define MAX_MEMORY  (4 * TIB) /* of one device */

struct arena {
  uintptr_t start;
  size_t room;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range *ranges; /* sorted by start; none overlap */
static size_t range_count, range_room;
static struct arena malloc_arena[MAX_DEVICES], reserve_arena[MAX_DEVICES];
static size_t taken[MAX_DEVICES];
static size_t capacities[MAX_DEVICES]; /* set by vgpu_set_memory; 0: the card's own */
static struct {
  size_t after, times;
} refusal[MAX_DEVICES]; /* set by vgpu_refuse: after so many requests, so many get nothing */
static bool contexts[MAX_DEVICES];

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void survive_fork(void) { pthread_atfork(before_fork, after_fork, after_fork); }

/* ---- the book of ranges; the caller holds the lock */

/* Index of the first range that starts after an address. */
static size_t index_after(uintptr_t address) {
  size_t low = 0, high = range_count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (ranges[middle].start <= address) low = middle + 1;
    else high = middle;
  }
  return low;
}

static struct range *holding(uintptr_t address) {
  size_t after = index_after(address);
  if (!after) return NULL;
  struct range *range = &ranges[after - 1];
  return address < range->start + range->size ? range : NULL;
}

static bool enter(struct range range) {
  if (range_count == range_room) {
    size_t room = range_room ? 2 * range_room : 256;
    struct range *grown = realloc(ranges, room * sizeof *ranges);
    if (!grown) return false;
    ranges = grown, range_room = room;
  }
  size_t at = index_after(range.start);
  memmove(ranges + at + 1, ranges + at, (range_count - at) * sizeof *ranges);
  ranges[at] = range;
  range_count++;
  return true;
}

static void leave(struct range *range) {
  size_t at = (size_t)(range - ranges);
  memmove(ranges + at, ranges + at + 1, (range_count - at - 1) * sizeof *ranges);
  range_count--;
}

/* ---- address space */

static size_t malloc_room(void) {
  size_t share = ALL_MALLOCS / (size_t)(settings.installed ? settings.installed : 1);
  return share < MAX_MEMORY ? share / GRANULE * GRANULE : MAX_MEMORY;
}

static size_t reserve_room(void) { return 3 * malloc_room(); }

static uintptr_t base_of(int board) { return FIRST_BASE + (size_t)board * (malloc_room() + reserve_room()); }

static void *reserve(uintptr_t wanted, size_t size) {
  return mmap((void *)wanted, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

static bool open_arena(struct arena *arena, uintptr_t wanted, size_t room) {
  if (arena->start) return true;
  /* Where address space is limited (ulimit -v), a smaller stretch has to do. */
  for (; room >= GIB; room /= 2) {
    /* Not a page more than its own: the neighbour's first page would be taken, and Linux would put it anywhere. */
    size_t size = room;
    void *raw = reserve(wanted, size);
    if (raw != MAP_FAILED && (uintptr_t)raw % GRANULE) { /* somebody is there: anywhere, then, and aligned by hand */
      munmap(raw, size);
      raw = reserve(0, size += GRANULE);
    }
    if (raw == MAP_FAILED) continue;
    madvise(raw, size, MADV_NOHUGEPAGE); /* one byte copied in must not commit 2 MiB */
    madvise(raw, size, MADV_DONTDUMP);
    *arena = (struct arena){ROUND_UP((uintptr_t)raw, GRANULE), room};
    return true;
  }
  return false;
}

/* First fit from the chosen end; 0 if the arena has no such gap. */
static uintptr_t place(const struct arena *arena, size_t size) {
  uintptr_t low = arena->start, high = arena->start + arena->room;
  size_t first = low ? index_after(low - 1) : 0, beyond = index_after(high - 1);
  if (settings.rising) {
    for (size_t i = first; i < beyond; i++) {
      if (ranges[i].start - low >= size) return low;
      low = ROUND_UP(ranges[i].start + ranges[i].size, GRANULE);
    }
    return high - low >= size ? low : 0;
  }
  for (size_t i = beyond; i-- > first;) {
    uintptr_t end = ROUND_UP(ranges[i].start + ranges[i].size, GRANULE);
    if (high - end >= size) return high - size;
    high = ranges[i].start;
  }
  return high - low >= size ? high - size : 0;
}

bool address_map(void *start, size_t size, bool accessible) {
  if (!accessible) madvise(start, size, MADV_DONTNEED); /* the pages go back, the next owner reads zeros */
  return mprotect(start, size, accessible ? PROT_READ | PROT_WRITE : PROT_NONE) == 0;
}

/* ---- capacity */

static size_t capacity(int board) { return capacities[board] ? capacities[board] : settings.memory; }

static size_t in_use(int board) { return taken[board] + (contexts[board] ? settings.context : 0); }

static bool refuses(int board) {
  if (refusal[board].after) return refusal[board].after--, false;
  return refusal[board].times && refusal[board].times--;
}

static bool charge(int board, size_t size) {
  if (refuses(board)) return false;
  size_t used = in_use(board);
  if (used > capacity(board) || size > capacity(board) - used) return false;
  taken[board] += size;
  return true;
}

bool device_charge(int device, size_t size) {
  pthread_mutex_lock(&lock);
  bool enough = charge(settings.board[device], size);
  pthread_mutex_unlock(&lock);
  return enough;
}

void device_refund(int device, size_t size) {
  pthread_mutex_lock(&lock);
  taken[settings.board[device]] -= size;
  pthread_mutex_unlock(&lock);
}

void context_create(int device) {
  if (device >= settings.devices) return;
  if (!__atomic_exchange_n(&contexts[settings.board[device]], true, __ATOMIC_RELAXED)) tell_of_use();
}
bool context_exists(int device) {
  return device < settings.devices && __atomic_load_n(&contexts[settings.board[device]], __ATOMIC_RELAXED);
}

void device_memory(int device, size_t *available, size_t *total) {
  int board = settings.board[device];
  pthread_mutex_lock(&lock);
  size_t used = in_use(board);
  *total = capacity(board);
  *available = used < *total ? *total - used : 0;
  pthread_mutex_unlock(&lock);
}

size_t board_taken(int board, size_t *total) {
  pthread_mutex_lock(&lock);
  size_t used = in_use(board);
  *total = capacities[board] ? capacities[board] + (settings.board_memory - settings.memory) : settings.board_memory;
  pthread_mutex_unlock(&lock);
  return used;
}

/* ---- ranges come and go */

bool range_find(const void *pointer, struct range *found) {
  pthread_mutex_lock(&lock);
  struct range *range = holding((uintptr_t)pointer);
  if (range) *found = *range;
  pthread_mutex_unlock(&lock);
  return range != NULL;
}

bool range_drop(const void *start) {
  pthread_mutex_lock(&lock);
  struct range *range = holding((uintptr_t)start);
  bool known = range && range->start == (uintptr_t)start;
  if (known) {
    if (range->kind == DEVICE_MEMORY) taken[settings.board[range->device]] -= range->size;
    if (range->kind == DEVICE_MEMORY || range->kind == RESERVED_ADDRESSES)
      address_map((void *)start, range->size, false);
    if (range->kind == HOST_MEMORY) munmap((void *)start, range->size);
    leave(range);
  }
  pthread_mutex_unlock(&lock);
  return known;
}

void *device_alloc(int device, size_t size) {
  int board = settings.board[device];
  struct arena *arena = &malloc_arena[board];
  uintptr_t start = 0;
  if (size > malloc_room()) return NULL;
  size = ROUND_UP(size, GRANULE);
  pthread_mutex_lock(&lock);
  if (charge(board, size)) {
    if (open_arena(arena, base_of(board), malloc_room())) start = place(arena, size);
    if (start && !(address_map((void *)start, size, true) && enter((struct range){start, size, DEVICE_MEMORY, device})))
      start = 0;
    if (!start) taken[board] -= size;
  }
  pthread_mutex_unlock(&lock);
  return (void *)start;
}

void *address_reserve(int device, size_t size) {
  int board = settings.board[device];
  struct arena *arena = &reserve_arena[board];
  uintptr_t start = 0;
  pthread_mutex_lock(&lock);
  if (size <= reserve_room() && open_arena(arena, base_of(board) + malloc_room(), reserve_room()))
    start = place(arena, ROUND_UP(size, GRANULE));
  if (start && !enter((struct range){start, size, RESERVED_ADDRESSES, device})) start = 0;
  pthread_mutex_unlock(&lock);
  return (void *)start;
}

void *host_alloc(int device, size_t size) {
  size = ROUND_UP(size ? size : 1, 4096);
  void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return NULL;
  pthread_mutex_lock(&lock);
  enter((struct range){(uintptr_t)start, size, HOST_MEMORY, device});
  pthread_mutex_unlock(&lock);
  return start;
}

void host_register(int device, void *start, size_t size) {
  pthread_mutex_lock(&lock);
  enter((struct range){(uintptr_t)start, size, REGISTERED_MEMORY, device});
  pthread_mutex_unlock(&lock);
}

/* ---- what Python asks; devices in the machine's numbering */

API void vgpu_set_memory(int board, size_t bytes) {
  pthread_mutex_lock(&lock);
  capacities[board] = bytes;
  pthread_mutex_unlock(&lock);
}
API void vgpu_refuse(int board, size_t after, size_t times) {
  pthread_mutex_lock(&lock);
  refusal[board].after = times ? after : 0;
  refusal[board].times = times;
  pthread_mutex_unlock(&lock);
}
API size_t vgpu_refusals(int board) { return __atomic_load_n(&refusal[board].times, __ATOMIC_RELAXED); }
API size_t vgpu_memory(int board) { return configure(), capacity(board); }
API size_t vgpu_used(int board) { return __atomic_load_n(&taken[board], __ATOMIC_RELAXED); }
