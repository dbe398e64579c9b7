/* cuBLAS and cuBLASLt: handles and descriptors are opaque zeroed objects, and every product is a generated stub.
 * Written out is only what torch reads back, the status of batched factorizations among it. The workspaces are torch's
 * own allocations, made on the host. */
#include "vgpu.h"

struct handle {
  int math_mode, pointer_mode;
};

API int cublasCreate_v2(void **handle) { return trace("cublasCreate"), make(handle); }
API int cublasDestroy_v2(void *handle) { return discard(handle); }
API int cublasGetMathMode(struct handle *handle, int *mode) { return *mode = handle->math_mode, 0; }
API int cublasSetMathMode(struct handle *handle, int mode) { return handle->math_mode = mode, 0; }
API int cublasGetPointerMode_v2(struct handle *handle, int *mode) { return *mode = handle->pointer_mode, 0; }
API int cublasSetPointerMode_v2(struct handle *handle, int mode) { return handle->pointer_mode = mode, 0; }
API int cublasSetWorkspace_v2(void *handle UNUSED, void *at, size_t size) {
  return trace("cublasSetWorkspace(%p, %zu)", at, size), 0;
}

API int cublasLtMatmulDescCreate(void **out, int compute UNUSED, int scale UNUSED) { return make(out); }
API int cublasLtMatmulDescDestroy(void *object) { return discard(object); }
API int cublasLtMatmulPreferenceCreate(void **out) { return make(out); }
API int cublasLtMatmulPreferenceDestroy(void *object) { return discard(object); }
API int cublasLtMatrixLayoutCreate(void **out, int type UNUSED, uint64_t rows UNUSED, uint64_t columns UNUSED,
                                   int64_t leading UNUSED) {
  return make(out);
}
API int cublasLtMatrixLayoutDestroy(void *object) { return discard(object); }

/* cublasLtMatmulHeuristicResult_t */
struct heuristic {
  uint64_t algorithm[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

/* One algorithm for everything, without a workspace of its own. */
API int cublasLtMatmulAlgoGetHeuristic(void *handle UNUSED, void *operation UNUSED, void *a UNUSED, void *b UNUSED,
                                       void *c UNUSED, void *d UNUSED, void *preference UNUSED, int wanted,
                                       struct heuristic *results, int *count) {
  *count = wanted > 0;
  if (wanted > 0) memset(results, 0, sizeof *results);
  return 0;
}

/* info: on the host; what the batched routines say of their arguments. */
typedef void *any;
#define BATCHED(T)                                                                                                     \
  API int cublas##T##geqrfBatched(any handle UNUSED, int m UNUSED, int n UNUSED, any a UNUSED, int lda UNUSED,         \
                                  any tau UNUSED, int *info, int batch UNUSED) {                                       \
    return *info = 0, (int)launched();                                                                                 \
  }                                                                                                                    \
  API int cublas##T##getrsBatched(any handle UNUSED, int op UNUSED, int n UNUSED, int columns UNUSED, any a UNUSED,    \
                                  int lda UNUSED, any pivots UNUSED, any b UNUSED, int ldb UNUSED, int *info,          \
                                  int batch UNUSED) {                                                                  \
    return *info = 0, (int)launched();                                                                                 \
  }                                                                                                                    \
  API int cublas##T##gelsBatched(any handle UNUSED, int op UNUSED, int m UNUSED, int n UNUSED, int columns UNUSED,     \
                                 any a UNUSED, int lda UNUSED, any c UNUSED, int ldc UNUSED, int *info,                \
                                 int *infos, int batch) {                                                              \
    if (infos) memset(infos, 0, (size_t)batch * sizeof *infos);                                                        \
    return *info = 0, (int)launched();                                                                                 \
  }                                                                                                                    \
  API int cublas##T##getrfBatched(any handle UNUSED, int n UNUSED, any a UNUSED, int lda UNUSED, any pivots UNUSED,    \
                                  int *infos, int batch) {                                                             \
    if (infos) memset(infos, 0, (size_t)batch * sizeof *infos);                                                        \
    return (int)launched();                                                                                            \
  }
BATCHED(S) BATCHED(D) BATCHED(C) BATCHED(Z)
