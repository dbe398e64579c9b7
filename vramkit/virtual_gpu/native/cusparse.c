/* cuSPARSE: descriptors of matrices, and how large a buffer each product, solve or sort wants. What computes is a
 * generated stub.
 *
 * Assumed: products of a sparse with a dense matrix want none, as cuSPARSE's manual says of most algorithms, or an
 * integer for each row (CSR_ALG2 and CSR_ALG3 of SpMM). Solves want the levels of their rows. A product of two sparse
 * matrices wants 24 bytes of each partial product (so an H200 did, of float32), of which there are as many as if all
 * rows were equally full, and has as many elements; so does a sum have all elements of both. Sorts want what they sort a
 * second time. */
#include "vgpu.h"

#include <library_types.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* most of what a routine is given says nothing about its size */

enum { OK, SPMM_CSR_ALG2 = 6, SPMM_CSR_ALG3 = 12 };
typedef void *any;
struct matrix {
  int64_t rows, columns, elements;
  size_t value; /* bytes of one */
};

static size_t size_of(int type) {
  switch (type) {
  case CUDA_C_64F: return 16;
  case CUDA_C_32F:
  case CUDA_R_64F: return 8;
  case CUDA_R_16F:
  case CUDA_R_16BF: return 2;
  default: return 4;
  }
}
static int answer(size_t bytes, size_t *size) {
  trace("cuSPARSE wants %zu bytes of buffer", bytes);
  return *size = bytes, OK;
}

/* ---- objects */

API int cusparseCreate(any *handle) { return make(handle); }
API int cusparseDestroy(any handle) { return discard(handle); }
#define OBJECT(create, destroy)                                                                                        \
  API int cusparse##create(any *object) { return make(object); }                                                       \
  API int cusparse##destroy(any object) { return discard(object); }
OBJECT(CreateMatDescr, DestroyMatDescr)
OBJECT(CreateBsrsv2Info, DestroyBsrsv2Info)
OBJECT(CreateBsrsm2Info, DestroyBsrsm2Info)
OBJECT(SpGEMM_createDescr, SpGEMM_destroyDescr)
OBJECT(SpSV_createDescr, SpSV_destroyDescr)
OBJECT(SpSM_createDescr, SpSM_destroyDescr)

static int describe(any *out, int64_t rows, int64_t columns, int64_t elements, int type) {
  if (make(out)) return 2; /* CUSPARSE_STATUS_ALLOC_FAILED */
  *(struct matrix *)*out = (struct matrix){rows, columns, elements, size_of(type)};
  return OK;
}
API int cusparseCreateCsr(any *out, int64_t rows, int64_t columns, int64_t elements, any offsets, any indices,
                          any values, int of_offsets, int of_indices, int base, int type) {
  return describe(out, rows, columns, elements, type);
}
API int cusparseCreateCoo(any *out, int64_t rows, int64_t columns, int64_t elements, any row, any column, any values,
                          int of_indices, int base, int type) {
  return describe(out, rows, columns, elements, type);
}
API int cusparseCreateDnMat(any *out, int64_t rows, int64_t columns, int64_t leading, any values, int type, int order) {
  return describe(out, rows, columns, rows * columns, type);
}
API int cusparseCreateDnVec(any *out, int64_t length, any values, int type) {
  return describe(out, length, 1, length, type);
}
API int cusparseDestroySpMat(any matrix) { return discard(matrix); }
API int cusparseDestroyDnMat(any matrix) { return discard(matrix); }
API int cusparseDestroyDnVec(any vector) { return discard(vector); }
/* Of a product, what ../values/ has computed, if it has. */
API int cusparseSpMatGetSize(const struct matrix *matrix, int64_t *rows, int64_t *columns, int64_t *elements) {
  long long counted = elements_counted();
  return *rows = matrix->rows, *columns = matrix->columns, *elements = counted < 0 ? matrix->elements : counted, OK;
}

/* ---- with a dense matrix */

API int cusparseSpMM_bufferSize(any h, int op_a, int op_b, any alpha, const struct matrix *a, any b, any beta, any c,
                                int type, int algorithm, size_t *size) {
  bool lists_rows = algorithm == SPMM_CSR_ALG2 || algorithm == SPMM_CSR_ALG3;
  return answer(lists_rows ? 4 * (size_t)a->rows : 0, size);
}
API int cusparseSpMV_bufferSize(any h, int op, any alpha, any a, any x, any beta, any y, int type, int algorithm,
                                size_t *size) {
  return answer(0, size);
}
API int cusparseSDDMM_bufferSize(any h, int op_a, int op_b, any alpha, any a, any b, any beta, any c, int type,
                                 int algorithm, size_t *size) {
  return answer(0, size);
}
API int cusparseSpSV_bufferSize(any h, int op, any alpha, const struct matrix *a, any x, any y, int type, int algorithm,
                                any how, size_t *size) {
  return answer(8 * (size_t)a->rows, size);
}
API int cusparseSpSM_bufferSize(any h, int op_a, int op_b, any alpha, const struct matrix *a, any b, any c, int type,
                                int algorithm, any how, size_t *size) {
  return answer(8 * (size_t)a->rows, size);
}

/* ---- of two sparse matrices */

static int64_t partial_products(const struct matrix *a, const struct matrix *b) {
  return a->columns ? (int64_t)((double)a->elements * (double)b->elements / (double)a->columns) : 0;
}
API int cusparseSpGEMM_workEstimation(any h, int op_a, int op_b, any alpha, const struct matrix *a,
                                      const struct matrix *b, any beta, struct matrix *c, int type, int algorithm,
                                      any how, size_t *size, any buffer) {
  int64_t most = a->rows * b->columns, products = partial_products(a, b);
  c->rows = a->rows, c->columns = b->columns, c->elements = products < most ? products : most;
  return buffer ? OK : answer(1024 + 12 * (size_t)a->elements, size);
}
API int cusparseSpGEMM_compute(any h, int op_a, int op_b, any alpha, const struct matrix *a, const struct matrix *b,
                               any beta, any c, int type, int algorithm, any how, size_t *size, any buffer) {
  return buffer ? OK : answer((1 << 13) + (size_t)partial_products(a, b) * (16 + 2 * a->value), size);
}

#define SUM(T)                                                                                                         \
  API int cusparse##T##csrgeam2_bufferSizeExt(                                                                         \
      any h, int m, int n, any alpha, any a, int of_a, any a_values, any a_rows, any a_columns, any beta, any b,       \
      int of_b, any b_values, any b_rows, any b_columns, any c, any c_values, any c_rows, any c_columns,               \
      size_t *size) {                                                                                                  \
    return answer(512, size);                                                                                          \
  }
SUM(S) SUM(D) SUM(C) SUM(Z)
API int cusparseXcsrgeam2Nnz(any h, int m, int n, any a, int of_a, any a_rows, any a_columns, any b, int of_b,
                             any b_rows, any b_columns, any c, any c_rows, int *elements, any work) {
  int64_t most = (int64_t)m * n, both = (int64_t)of_a + of_b, counted = elements_counted();
  return *elements = (int)(counted >= 0 ? counted : both < most ? both : most), OK;
}

/* ---- sorts, and solves with blocks */

API int cusparseXcoosort_bufferSizeExt(any h, int m, int n, int elements, any rows, any columns, size_t *size) {
  return answer(2 * sizeof(int) * (size_t)elements, size);
}
API int cusparseXcsrsort_bufferSizeExt(any h, int m, int n, int elements, any rows, any columns, size_t *size) {
  return answer(2 * sizeof(int) * (size_t)elements, size);
}
#define BLOCKED(T)                                                                                                     \
  API int cusparse##T##bsrsv2_bufferSize(any h, int direction, int op, int rows, int blocks, any a, any values,        \
                                         any offsets, any columns, int side, any info, int *size) {                    \
    return *size = 8 * rows, OK;                                                                                       \
  }                                                                                                                    \
  API int cusparse##T##bsrsm2_bufferSize(any h, int direction, int op, int op_x, int rows, int n, int blocks, any a,   \
                                         any values, any offsets, any columns, int side, any info, int *size) {        \
    return *size = 8 * rows, OK;                                                                                       \
  }
BLOCKED(S) BLOCKED(D) BLOCKED(C) BLOCKED(Z)
API int cusparseXbsrsv2_zeroPivot(any h, any info, int *position) { return *position = -1, OK; }
API int cusparseXbsrsm2_zeroPivot(any h, any info, int *position) { return *position = -1, OK; }
