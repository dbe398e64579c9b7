/* Matrix products inside of cuDNN: some of its convolutions hand their work to cuBLASLt, whose functions it looks up at
 * run time, in the real library. That makes no handle without a device, and cuDNN then drops the engines that want one:
 * the first ones that it chooses for windows of one pixel, and those that transform tiles in memory. It knows how cuDNN
 * is given the few functions that need a device.
 *
 * Assumed: cuBLASLt wants no workspace of its own. An H200's wanted none, or one of 272 or 400 bytes, and partial sums in
 * some gradients of weights whose channels lie last (9 MiB at most). */
#define _GNU_SOURCE
#include "vgpu.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

struct heuristic; /* cublas.c */
API int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                       void *preference, int wanted, struct heuristic *results, int *count);

static int create(void **handle) { return make(handle); }
static int destroy(void *handle) { return discard(handle); }

/* Ours where a device is needed; descriptors are the real library's. */
static void *look_up(void *library, const char *name) {
  if (!strcmp(name, "cublasLtCreate")) return create;
  if (!strcmp(name, "cublasLtDestroy")) return destroy;
  if (!strcmp(name, "cublasLtMatmulAlgoGetHeuristic")) return cublasLtMatmulAlgoGetHeuristic;
  return dlsym(library, name);
}

/* Let a library's calls of dlsym come here: its table of imported functions has an entry for it. */
static void redirect(const struct link_map *library) {
  const ElfW(Rela) *imports = NULL;
  const ElfW(Sym) *symbols = NULL;
  const char *names = NULL;
  size_t size = 0;
  for (const ElfW(Dyn) *entry = library->l_ld; entry->d_tag != DT_NULL; entry++) {
    if (entry->d_tag == DT_JMPREL) imports = (const void *)entry->d_un.d_ptr;
    if (entry->d_tag == DT_PLTRELSZ) size = entry->d_un.d_val;
    if (entry->d_tag == DT_SYMTAB) symbols = (const void *)entry->d_un.d_ptr;
    if (entry->d_tag == DT_STRTAB) names = (const void *)entry->d_un.d_ptr;
  }
  if (!imports || !symbols || !names) return;
  for (const ElfW(Rela) *at = imports; at < imports + size / sizeof *at; at++)
    if (!strcmp(names + symbols[ELF64_R_SYM(at->r_info)].st_name, "dlsym"))
      *(void **)(library->l_addr + at->r_offset) = look_up;
}

void answer_products(const void *cudnn) {
  static const char engines[] = "libcudnn_engines_precompiled.so.9"; /* it stays open, as cuDNN wants it too */
  Dl_info info;
  char path[4096];
  struct link_map *library;
  if (!dladdr(cudnn, &info)) return;
  const char *end = strrchr(info.dli_fname, '/');
  snprintf(path, sizeof path, "%.*s%s", end ? (int)(end + 1 - info.dli_fname) : 0, info.dli_fname, engines);
  void *opened = dlopen(path, RTLD_LAZY);
  if (opened && !dlinfo(opened, RTLD_DI_LINKMAP, &library)) redirect(library);
  if (!opened) trace("cuDNN has no %s", path);
}
