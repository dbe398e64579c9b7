/* What the rooms of the virtual GPU share: the settings, the book of memory ranges, a few helpers.
 *
 * Every name here is hidden from other libraries; what is visible are the CUDA functions themselves and the
 * vgpu_* calls of config.c and memory.c, which Python makes. */
#ifndef VGPU_H
#define VGPU_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cuda.h>
#include <cuda_runtime_api.h>

#define MIB             ((size_t)1 << 20)
#define GIB             ((size_t)1 << 30)
#define TIB             ((size_t)1 << 40)
#define MAX_DEVICES     16
#define GRANULE         (2 * MIB) /* the driver backs device memory with pages of 2 MiB */
#define ROUND_UP(x, to) (((x) + (to) - 1) / (to) * (to))
#define API             __attribute__((visibility("default")))
#define UNUSED          __attribute__((unused))

#pragma GCC visibility push(hidden)

/* ---- config.c: which GPU, how many */

struct settings {
  char name[256];      /* the product's name, as the driver reports it */
  size_t memory;       /* what cudaGetDeviceProperties calls total memory */
  size_t board_memory; /* what NVML calls total: a little more */
  size_t context;      /* device memory that a CUDA context takes */
  size_t copy_limit;   /* largest copy *to* a device that moves bytes */
  size_t l2_cache, shared_memory_per_multiprocessor, shared_memory_per_block;
  int major, minor, multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
  int clock_mhz, memory_clock_mhz, bus_width;
  int binary;             /* the architecture in torch's binaries that this device would run */
  int installed;          /* devices in the machine */
  int devices;            /* devices that CUDA_VISIBLE_DEVICES leaves of them */
  int board[MAX_DEVICES]; /* which of the installed ones is CUDA device i */
  bool rising;            /* addresses of new memory go up instead of down */
  bool trace;
};
extern struct settings settings;
void configure(void); /* reads the settings once; every entry point that needs them calls it */
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
void limit_met(const char *function); /* a function that can't do here what it is for */

/* ---- memory.c: who owns which address, and how much of a device is taken */

enum kind { DEVICE_MEMORY, RESERVED_ADDRESSES, HOST_MEMORY, REGISTERED_MEMORY };
struct range {
  uintptr_t start;
  size_t size;
  enum kind kind;
  int device; /* CUDA's number */
};
bool range_find(const void *pointer, struct range *found); /* the range that holds an address */
bool range_drop(const void *start);                        /* forget it and give its memory back */
void *device_alloc(int device, size_t size);               /* NULL: the device is full */
void *address_reserve(int device, size_t size);
bool address_map(void *start, size_t size, bool accessible);
void *host_alloc(int device, size_t size);
void host_register(int device, void *start, size_t size);
bool device_charge(int device, size_t size); /* takes bytes of the device; false if it has not got them */
void device_refund(int device, size_t size);
void context_create(int device); /* from here on the device carries a context */
void tell_of_use(void); /* to `vramkit run`, which started this process */
bool context_exists(int device);
void device_memory(int device, size_t *available, size_t *total);
size_t board_taken(int board, size_t *total); /* what NVML sees, by the machine's numbering */

/* ---- runtime.c */

cudaError_t fail(cudaError_t error); /* what cudaGetLastError will say */
int device_current(void);
bool device_choose(int device);
int device_attribute(int name, int device);

/* ---- values.c */

void used(void);                        /* CUDA was asked for its devices */
void thread_seen(void);                 /* this thread asked for its device */
bool holds(void);                       /* this thread's copies to a device do nothing */
bool answered(void *to, size_t size);   /* a copy to the host that is delivered from elsewhere */
long long elements_counted(void);       /* of the sparse matrix that is being made; below 0: not known */
void note_copy(const void *at);         /* bytes went to a device */

/* ---- threads.c */

void autograd_rest(void); /* wait until torch's autograd threads sleep */

/* ---- kernels.c */

cudaError_t launched(void);
void plan_launched(void); /* one of cuDNN's */
struct launches {
  unsigned long long all, plans;
};
struct launches launches_so_far(void);
int occupancy(int threads, size_t shared);

/* ---- cudnn_products.c */

void answer_products(const void *cudnn); /* cudnn: an address in the real library */

/* ---- numbers.c: a number at an index, of a type by ncclDataType_t */

enum { INT8, UINT8, INT32, UINT32, INT64, UINT64, HALF, FLOAT, DOUBLE, BFLOAT16, FLOAT8E4M3, FLOAT8E5M2 };
size_t number_size(int type);
long double number_load(const char *at, size_t index, int type);
void number_store(char *at, size_t index, int type, long double value);

/* ---- for opaque objects */

static inline int make(void **out) {
  *out = calloc(1, 256);
  return *out ? 0 : 1;
}
static inline int discard(void *object) {
  free(object);
  return 0;
}

#pragma GCC visibility pop
#endif
