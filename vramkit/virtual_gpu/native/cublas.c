/* cuBLAS and cuBLASLt: handles and descriptors are opaque zeroed objects, and every product is a generated stub.
 * Written out is only what torch reads back. The workspaces are torch's own allocations, made on the host. */
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
