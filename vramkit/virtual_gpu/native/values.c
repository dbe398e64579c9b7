/* What the computation of values asks of the CUDA runtime: it knows copies and threads, and computes nothing itself.
 * ../values/ is the other side. */
#define _GNU_SOURCE
#include "vgpu.h"

#include <dlfcn.h>
#include <stdatomic.h>

static int (*first_use)(void); /* true: it has been served */
static bool served;
static void (*visit)(void);
static _Thread_local int held;
static _Thread_local long long answer;
static _Thread_local bool has_answer;

/* Called once, before torch is imported: what to run when CUDA is asked for its devices. */
API void vgpu_on_first_use(int (*call)(void)) { first_use = call; }

/* A child process has this library from its environment, and nobody who asked vramkit for anything: it is told so. */
static void tell_python(void) {
  int (*is_running)(void), (*take)(void), (*run)(const char *);
  void (*give)(int);
  *(void **)&is_running = dlsym(RTLD_DEFAULT, "Py_IsInitialized");
  *(void **)&take = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
  *(void **)&run = dlsym(RTLD_DEFAULT, "PyRun_SimpleString");
  *(void **)&give = dlsym(RTLD_DEFAULT, "PyGILState_Release");
  if (!is_running || !take || !run || !give || !is_running()) return;
  int state = take();
  run("try:\n"
      " __import__('vramkit.virtual_gpu', fromlist=['current']).current()\n"
      "except ImportError:\n"
      " pass\n");
  give(state);
}

void used(void) {
  static bool told;
  if (!first_use && !told && getenv("VRAMKIT_VIRTUAL_GPU")) {
    told = true;
    tell_python();
  }
  if (served || !first_use) return;
  served = true; /* whatever it runs may ask for the devices itself */
  served = first_use() != 0;
}

/* From now on every thread that asks for its device makes this call, each time. */
API void vgpu_each_thread(void (*call)(void)) { visit = call; }

void thread_seen(void) {
  if (visit) visit();
}

/* Above 0, copies and fills on a device do nothing in this thread: the result is computed as a whole. */
API void vgpu_hold(int by) { held += by; }
bool holds(void) { return held > 0; }

/* The next copies of one integer to the host deliver this, until it is taken back (count 0). */
API void vgpu_answer(const long long *number, int count) {
  has_answer = count > 0;
  if (has_answer) answer = *number;
}
bool answered(void *to, size_t size) {
  if (!has_answer || (size != 4 && size != 8)) return false;
  if (size == 8) memcpy(to, &answer, 8);
  else memcpy(to, &(int){(int)answer}, 4);
  return true;
}

/* How many elements the next sparse matrix has that cuSPARSE makes; below 0: nobody has counted them. */
static _Thread_local long long elements = -1;
API void vgpu_elements(long long number) { elements = number; }
long long elements_counted(void) { return elements; }

/* Where the last copies from the host went, for copies that no operator made; an older one may be forgotten. */
static _Atomic(uintptr_t) copies[1 << 16];
static _Atomic(uintptr_t) *copied_at(const void *at) { return &copies[((uintptr_t)at >> 9) % (1 << 16)]; }
void note_copy(const void *at) { *copied_at(at) = (uintptr_t)at; }

/* Whether the last write to this address was such a copy; asked once. */
API bool vgpu_was_copied(const void *at) {
  uintptr_t expected = (uintptr_t)at;
  return atomic_compare_exchange_strong(copied_at(at), &expected, 0);
}
