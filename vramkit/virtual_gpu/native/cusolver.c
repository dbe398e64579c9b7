/* cuSOLVER: how large a workspace each routine wants, and that it succeeded.
 * The factors themselves are for ../values/ to compute; here a routine only sets its devInfo to 0.
 *
 * Assumed: NVIDIA publishes no formula, so each size is the one that LAPACK's routine of that name asks for, with
 * blocks of 64 columns; a Jacobi method, which LAPACK has not, rotates copies of the matrix and of the vectors. Of
 * syevjBatched some sizes are public (cupy issue 7261: complex, 2 x 2 and 4 x 4 in batches), which its formula gives.
 * As in cuSOLVER, a size above the largest int is an invalid value. */
#include "vgpu.h"

#include <library_types.h>
#include <limits.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* most of what a routine is given says nothing about its size */

enum { OK = 0, INVALID_VALUE = 3, BLOCK = 64, TILE = 32 };
typedef void *any;

API int cusolverDnCreate(any *handle) { return make(handle); }
API int cusolverDnDestroy(any handle) { return discard(handle); }
API int cusolverDnCreateParams(any *params) { return make(params); }
API int cusolverDnDestroyParams(any params) { return discard(params); }
API int cusolverDnCreateGesvdjInfo(any *info) { return make(info); }
API int cusolverDnDestroyGesvdjInfo(any info) { return discard(info); }
API int cusolverDnCreateSyevjInfo(any *info) { return make(info); }
API int cusolverDnDestroySyevjInfo(any info) { return discard(info); }

/* ---- sizes, in elements */

static int64_t of_panel(int64_t columns) { return BLOCK * columns; }
static int64_t of_svd(int64_t m, int64_t n) { return 3 * (m < n ? m : n) + of_panel(m + n); }
static int64_t of_jacobi(int64_t m, int64_t n) { return m * n + n * n; }
static int64_t of_eigen(int64_t n, int vectors) { return vectors ? 1 + 6 * n + 2 * n * n : 2 * n + of_panel(n); }
static int64_t of_small_eigen(int64_t n, int64_t batch) {
  int64_t side = (int64_t)ROUND_UP(n, TILE);
  return TILE * TILE + 4 + batch * (side * side + (n + 1) * (n + 1));
}

static int answer(int64_t elements, int *size) {
  if (elements > INT_MAX) return INVALID_VALUE;
  trace("cuSOLVER wants %lld elements of workspace", (long long)elements);
  return *size = (int)elements, OK;
}
/* The interface of 64 bits asks in bytes, and for memory of the host as well: none is needed here. */
static int answer_bytes(int64_t elements, cudaDataType type, size_t *on_device, size_t *on_host) {
  size_t unit = type == CUDA_C_64F ? 16 : type == CUDA_C_32F || type == CUDA_R_64F ? 8 : 4;
  trace("cuSOLVER wants %lld elements of workspace", (long long)elements);
  return *on_device = (size_t)elements * unit, *on_host = 0, OK;
}

/* A routine of one type: what it is called, its arguments, and what is done. */
#define ROUTINE(T, name, arguments, done)                                                                              \
  API int cusolverDn##T##name arguments { return done; }

#define SIZES(T, org, orm, sy)                                                                                         \
  ROUTINE(T, potrf_bufferSize, (any h, int uplo, int n, any a, int lda, int *size), answer(of_panel(n), size))         \
  ROUTINE(T, getrf_bufferSize, (any h, int m, int n, any a, int lda, int *size), answer(of_panel(n), size))            \
  ROUTINE(T, geqrf_bufferSize, (any h, int m, int n, any a, int lda, int *size), answer(of_panel(n), size))            \
  ROUTINE(T, sytrf_bufferSize, (any h, int n, any a, int lda, int *size), answer(of_panel(n), size))                   \
  ROUTINE(T, org##_bufferSize, (any h, int m, int n, int k, any a, int lda, any tau, int *size),                       \
          answer(of_panel(n), size))                                                                                   \
  ROUTINE(T, orm##_bufferSize,                                                                                         \
          (any h, int right, int trans, int m, int n, int k, any a, int lda, any tau, any c, int ldc, int *size),      \
          answer(of_panel(right ? m : n), size))                                                                       \
  ROUTINE(T, gesvd_bufferSize, (any h, int m, int n, int *size), answer(of_svd(m, n), size))                           \
  ROUTINE(T, gesvdj_bufferSize,                                                                                        \
          (any h, int job, int econ, int m, int n, any a, int lda, any s, any u, int ldu, any v, int ldv, int *size),  \
          answer(of_jacobi(m, n), size))                                                                               \
  ROUTINE(T, gesvdjBatched_bufferSize,                                                                                 \
          (any h, int job, int m, int n, any a, int lda, any s, any u, int ldu, any v, int ldv, int *size, any how,    \
           int batch),                                                                                                 \
          answer(batch * of_jacobi(m, n), size))                                                                       \
  ROUTINE(T, gesvdaStridedBatched_bufferSize,                                                                          \
          (any h, int job, int rank, int m, int n, any a, int lda, long long by_a, any s, long long by_s, any u,       \
           int ldu, long long by_u, any v, int ldv, long long by_v, int *size, int batch),                             \
          answer(batch * of_jacobi(m, n), size))                                                                       \
  ROUTINE(T, sy##evd_bufferSize, (any h, int job, int uplo, int n, any a, int lda, any w, int *size),                  \
          answer(of_eigen(n, job), size))                                                                              \
  ROUTINE(T, sy##evj_bufferSize,                                                                                       \
          (any h, int job, int uplo, int n, any a, int lda, any w, int *size, any how),                                \
          answer(of_jacobi(n, n), size))                                                                               \
  ROUTINE(T, sy##evjBatched_bufferSize,                                                                                \
          (any h, int job, int uplo, int n, any a, int lda, any w, int *size, any how, int batch),                     \
          answer(of_small_eigen(n, batch), size))
SIZES(S, orgqr, ormqr, sy)
SIZES(D, orgqr, ormqr, sy)
SIZES(C, ungqr, unmqr, he)
SIZES(Z, ungqr, unmqr, he)

typedef cudaDataType type;
ROUTINE(X, potrf_bufferSize,
        (any h, any how, int uplo, int64_t n, type t, any a, int64_t lda, type in, size_t *device, size_t *host),
        answer_bytes(of_panel(n), t, device, host))
ROUTINE(X, geqrf_bufferSize,
        (any h, any how, int64_t m, int64_t n, type t, any a, int64_t lda, type of_tau, any tau, type in,
         size_t *device, size_t *host),
        answer_bytes(of_panel(n), t, device, host))
ROUTINE(X, syevd_bufferSize,
        (any h, any how, int job, int uplo, int64_t n, type t, any a, int64_t lda, type of_w, any w, type in,
         size_t *device, size_t *host),
        answer_bytes(of_eigen(n, job), t, device, host))
ROUTINE(X, syevBatched_bufferSize,
        (any h, any how, int job, int uplo, int64_t n, type t, any a, int64_t lda, type of_w, any w, type in,
         size_t *device, size_t *host, int64_t batch),
        answer_bytes(of_small_eigen(n, batch), t, device, host))
ROUTINE(X, geev_bufferSize,
        (any h, any how, int left, int right, int64_t n, type t, any a, int64_t lda, type of_w, any w, type of_vl,
         any vl, int64_t ldvl, type of_vr, any vr, int64_t ldvr, type in, size_t *device, size_t *host),
        answer_bytes(4 * n + of_panel(n), t, device, host))
ROUTINE(X, sytrs_bufferSize,
        (any h, int uplo, int64_t n, int64_t columns, type t, any a, int64_t lda, any pivots, type of_b, any b,
         int64_t ldb, size_t *device, size_t *host),
        answer_bytes(n * columns, t, device, host))

/* ---- routines: where devInfo stands among their arguments is all that is known of them */

static int succeed(int *info, int64_t count) {
  launched();
  if (info) memset(info, 0, (size_t)count * sizeof *info);
  return OK;
}

#define ROUTINES(T, org, orm, sy)                                                                                      \
  ROUTINE(T, potrf, (any h, int uplo, int n, any a, int lda, any work, int size, int *info), succeed(info, 1))         \
  ROUTINE(T, potrs, (any h, int uplo, int n, int k, any a, int lda, any b, int ldb, int *info), succeed(info, 1))      \
  ROUTINE(T, potrfBatched, (any h, int uplo, int n, any a, int lda, int *info, int batch), succeed(info, batch))       \
  ROUTINE(T, potrsBatched, (any h, int uplo, int n, int k, any a, int lda, any b, int ldb, int *info, int batch),      \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, getrf, (any h, int m, int n, any a, int lda, any work, any pivots, int *info), succeed(info, 1))          \
  ROUTINE(T, getrs, (any h, int trans, int n, int k, any a, int lda, any pivots, any b, int ldb, int *info),           \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, geqrf, (any h, int m, int n, any a, int lda, any tau, any work, int size, int *info), succeed(info, 1))   \
  ROUTINE(T, sytrf, (any h, int uplo, int n, any a, int lda, any pivots, any work, int size, int *info),               \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, org, (any h, int m, int n, int k, any a, int lda, any tau, any work, int size, int *info),                \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, orm,                                                                                                      \
          (any h, int side, int trans, int m, int n, int k, any a, int lda, any tau, any c, int ldc, any work,         \
           int size, int *info),                                                                                       \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, gesvd,                                                                                                    \
          (any h, signed char of_u, signed char of_v, int m, int n, any a, int lda, any s, any u, int ldu, any v,      \
           int ldv, any work, int size, any real, int *info),                                                          \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, gesvdj,                                                                                                   \
          (any h, int job, int econ, int m, int n, any a, int lda, any s, any u, int ldu, any v, int ldv, any work,    \
           int size, int *info, any how),                                                                              \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, gesvdjBatched,                                                                                            \
          (any h, int job, int m, int n, any a, int lda, any s, any u, int ldu, any v, int ldv, any work, int size,    \
           int *info, any how, int batch),                                                                             \
          succeed(info, batch))                                                                                        \
  ROUTINE(T, gesvdaStridedBatched,                                                                                     \
          (any h, int job, int rank, int m, int n, any a, int lda, long long by_a, any s, long long by_s, any u,       \
           int ldu, long long by_u, any v, int ldv, long long by_v, any work, int size, int *info, double *residuals,  \
           int batch),                                                                                                 \
          succeed(info, batch))                                                                                        \
  ROUTINE(T, sy##evd, (any h, int job, int uplo, int n, any a, int lda, any w, any work, int size, int *info),         \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, sy##evj,                                                                                                  \
          (any h, int job, int uplo, int n, any a, int lda, any w, any work, int size, int *info, any how),            \
          succeed(info, 1))                                                                                            \
  ROUTINE(T, sy##evjBatched,                                                                                           \
          (any h, int job, int uplo, int n, any a, int lda, any w, any work, int size, int *info, any how, int batch), \
          succeed(info, batch))
ROUTINES(S, orgqr, ormqr, sy)
ROUTINES(D, orgqr, ormqr, sy)
ROUTINES(C, ungqr, unmqr, he)
ROUTINES(Z, ungqr, unmqr, he)

ROUTINE(X, potrf,
        (any h, any how, int uplo, int64_t n, type t, any a, int64_t lda, type in, any device, size_t on_device,
         any host, size_t on_host, int *info),
        succeed(info, 1))
ROUTINE(X, potrs,
        (any h, any how, int uplo, int64_t n, int64_t k, type t, any a, int64_t lda, type of_b, any b, int64_t ldb,
         int *info),
        succeed(info, 1))
ROUTINE(X, geqrf,
        (any h, any how, int64_t m, int64_t n, type t, any a, int64_t lda, type of_tau, any tau, type in, any device,
         size_t on_device, any host, size_t on_host, int *info),
        succeed(info, 1))
ROUTINE(X, syevd,
        (any h, any how, int job, int uplo, int64_t n, type t, any a, int64_t lda, type of_w, any w, type in,
         any device, size_t on_device, any host, size_t on_host, int *info),
        succeed(info, 1))
ROUTINE(X, syevBatched,
        (any h, any how, int job, int uplo, int64_t n, type t, any a, int64_t lda, type of_w, any w, type in,
         any device, size_t on_device, any host, size_t on_host, int *info, int64_t batch),
        succeed(info, batch))
ROUTINE(X, geev,
        (any h, any how, int left, int right, int64_t n, type t, any a, int64_t lda, type of_w, any w, type of_vl,
         any vl, int64_t ldvl, type of_vr, any vr, int64_t ldvr, type in, any device, size_t on_device, any host,
         size_t on_host, int *info),
        succeed(info, 1))
ROUTINE(X, sytrs,
        (any h, int uplo, int64_t n, int64_t k, type t, any a, int64_t lda, any pivots, type of_b, any b, int64_t ldb,
         any device, size_t on_device, any host, size_t on_host, int *info),
        succeed(info, 1))
