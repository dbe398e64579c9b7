/* cuSOLVER: how large a workspace each routine wants, and that it succeeded.
 * The factors themselves are for ../values/ to compute; here a routine only sets its devInfo to 0.
 *
 * NVIDIA publishes no formula. Sizes were fitted to what cuSOLVER of CUDA 13.0 asked for on an H200
 * (benchmarks/real_gpu/recordings), where benchmarks/test_work_areas.py holds them: Cholesky, QR and the products with its
 * Q in every problem; LU up to 1,024 rows and columns; a generated Q but for 65 to 127 columns; symmetric eigenproblems,
 * and singular values of square matrices, within 100 elements. Fitted to a few sizes each: Jacobi methods, batches of
 * eigenproblems, sytrf and geev; by the order of magnitude alone gesvda, and gesvd of matrices that are not square. As in
 * cuSOLVER, a size above the largest int is an invalid value. */
#include "vgpu.h"

#include <library_types.h>
#include <limits.h>

#pragma GCC diagnostic ignored "-Wunused-parameter" /* most of what a routine is given says nothing about its size */

enum { OK = 0, INVALID_VALUE = 3, TILE = 32 };
typedef void *any;
typedef cudaDataType type;

API int cusolverDnCreate(any *handle) { return make(handle); }
API int cusolverDnDestroy(any handle) { return discard(handle); }
API int cusolverDnCreateParams(any *params) { return make(params); }
API int cusolverDnDestroyParams(any params) { return discard(params); }
API int cusolverDnCreateGesvdjInfo(any *info) { return make(info); }
API int cusolverDnDestroyGesvdjInfo(any info) { return discard(info); }
API int cusolverDnCreateSyevjInfo(any *info) { return make(info); }
API int cusolverDnDestroySyevjInfo(any info) { return discard(info); }

/* ---- sizes, in elements */

static int64_t least(int64_t m, int64_t n) { return m < n ? m : n; }
static int64_t most(int64_t m, int64_t n) { return m > n ? m : n; }
static int64_t tiles(int64_t elements) { return (int64_t)ROUND_UP(elements, TILE); } /* whole ones */

static int64_t of_cholesky(int64_t n, int upper, int64_t unit) {
  int64_t side = tiles(n) / TILE;
  return (upper ? 128 + 32 * unit : tiles(4 * side * side + 128)) / unit;
}
static int64_t of_lu(int64_t m, int64_t n, int64_t unit) {
  int64_t k = least(m, n), first = 16;
  while (first < 256 && 2 * first < k) first *= 2;
  return 16 * (16 + first + (int64_t)ROUND_UP(most(k + 1, 32) / 2, 16)) / unit;
}
static int64_t of_qr(int64_t n) { return (512 + most(n, 256)) * 1024; }
static int64_t of_q(int64_t m, int64_t k) {
  return (1 << 15) + 256 + (k <= 64 ? tiles(k * m) : 128 * (m + most(2 * k - 128, 0)));
}
static int64_t of_q_times(int64_t m, int64_t n, int64_t k) {
  return (1 << 16) + 256 * (m + 1) + 512 * n + tiles(k * (m + most(n, k))) + (most(m, n) > TILE ? tiles(n) : 0);
}
static int64_t of_svd(int64_t m, int64_t n) {
  int64_t k = least(m, n), plain = (1 << 16) + 256 * (k + 1) + 3 * tiles(k * k) + 4 * k;
  return m == n ? plain : most(plain, of_qr(k) + of_q(m, k) + m * n + 3 * k * k);
}
static int64_t of_jacobi(int64_t m, int64_t n) {
  int64_t k = least(m, n), plain = k <= TILE ? 992 : 992 + 2 * k * (k + 1) + 64 * tiles(k);
  return m == n ? plain : most(plain, of_qr(k) + tiles(k) + TILE) + (m < n ? m * n : 0);
}
static int64_t of_approximate_svd(int64_t n) { return 12 * n * n + 1024 * n; } /* of four bytes */
static int64_t of_eigen(int64_t n) {
  return most(3 * n * n + 768 * n + (1 << 16) + 67, 4 * n * n + 127 * n + (1 << 15) + 195);
}
static int64_t of_jacobi_eigen(int64_t n) { return n * n + 59 * n - 617; }
static int64_t of_small_eigen(int64_t n, int64_t batch) {
  return TILE * TILE + 4 + batch * (tiles(n) * tiles(n) + (n + 1) * (n + 1));
}

static int answer(int64_t elements, int *size) {
  if (elements > INT_MAX) return INVALID_VALUE;
  trace("cuSOLVER wants %lld elements of workspace", (long long)elements);
  return *size = (int)elements, OK;
}
/* The interface of 64 bits asks in bytes, 128 more for some, and for memory of the host as well: none is needed here. */
static int64_t bytes_of(type t) { return t == CUDA_C_64F ? 16 : t == CUDA_C_32F || t == CUDA_R_64F ? 8 : 4; }
static int answer_bytes(int64_t elements, type t, int more, size_t *on_device, size_t *on_host) {
  trace("cuSOLVER wants %lld elements of workspace", (long long)elements);
  return *on_device = (size_t)(elements * bytes_of(t) + more), *on_host = 0, OK;
}

/* A routine of one type: what it is called, its arguments, and what is done. */
#define ROUTINE(T, name, arguments, done)                                                                              \
  API int cusolverDn##T##name arguments { return done; }

#define SIZES(T, unit, org, orm, sy)                                                                                   \
  ROUTINE(T, potrf_bufferSize, (any h, int uplo, int n, any a, int lda, int *size),                                    \
          answer(of_cholesky(n, uplo, unit), size))                                                                    \
  ROUTINE(T, getrf_bufferSize, (any h, int m, int n, any a, int lda, int *size), answer(of_lu(m, n, unit), size))      \
  ROUTINE(T, geqrf_bufferSize, (any h, int m, int n, any a, int lda, int *size), answer(of_qr(n), size))               \
  ROUTINE(T, sytrf_bufferSize, (any h, int n, any a, int lda, int *size), answer(384 * n + 32, size))                  \
  ROUTINE(T, org##_bufferSize, (any h, int m, int n, int k, any a, int lda, any tau, int *size),                       \
          answer(of_q(m, k), size))                                                                                    \
  ROUTINE(T, orm##_bufferSize,                                                                                         \
          (any h, int right, int trans, int m, int n, int k, any a, int lda, any tau, any c, int ldc, int *size),      \
          answer(right ? of_q_times(n, m, k) : of_q_times(m, n, k), size))                                             \
  ROUTINE(T, gesvd_bufferSize, (any h, int m, int n, int *size), answer(of_svd(m, n), size))                           \
  ROUTINE(T, gesvdj_bufferSize,                                                                                        \
          (any h, int job, int econ, int m, int n, any a, int lda, any s, any u, int ldu, any v, int ldv, int *size),  \
          answer(of_jacobi(m, n), size))                                                                               \
  ROUTINE(T, gesvdjBatched_bufferSize,                                                                                 \
          (any h, int job, int m, int n, any a, int lda, any s, any u, int ldu, any v, int ldv, int *size, any how,    \
           int batch),                                                                                                 \
          answer(of_jacobi(m, n), size))                                                                               \
  ROUTINE(T, gesvdaStridedBatched_bufferSize,                                                                          \
          (any h, int job, int rank, int m, int n, any a, int lda, long long by_a, any s, long long by_s, any u,       \
           int ldu, long long by_u, any v, int ldv, long long by_v, int *size, int batch),                             \
          answer(batch * of_approximate_svd(least(m, n)) * 4 / unit, size))                                            \
  ROUTINE(T, sy##evd_bufferSize, (any h, int job, int uplo, int n, any a, int lda, any w, int *size),                  \
          answer(of_eigen(n), size))                                                                                   \
  ROUTINE(T, sy##evj_bufferSize,                                                                                       \
          (any h, int job, int uplo, int n, any a, int lda, any w, int *size, any how),                                \
          answer(of_jacobi_eigen(n), size))                                                                            \
  ROUTINE(T, sy##evjBatched_bufferSize,                                                                                \
          (any h, int job, int uplo, int n, any a, int lda, any w, int *size, any how, int batch),                     \
          answer(of_small_eigen(n, batch), size))
SIZES(S, 4, orgqr, ormqr, sy)
SIZES(D, 8, orgqr, ormqr, sy)
SIZES(C, 8, ungqr, unmqr, he)
SIZES(Z, 16, ungqr, unmqr, he)

ROUTINE(X, potrf_bufferSize,
        (any h, any how, int uplo, int64_t n, type t, any a, int64_t lda, type in, size_t *device, size_t *host),
        answer_bytes(of_cholesky(n, uplo, bytes_of(t)), t, 0, device, host))
ROUTINE(X, geqrf_bufferSize,
        (any h, any how, int64_t m, int64_t n, type t, any a, int64_t lda, type of_tau, any tau, type in,
         size_t *device, size_t *host),
        answer_bytes(of_qr(n), t, 128, device, host))
ROUTINE(X, syevd_bufferSize,
        (any h, any how, int job, int uplo, int64_t n, type t, any a, int64_t lda, type of_w, any w, type in,
         size_t *device, size_t *host),
        answer_bytes(of_eigen(n), t, 128, device, host))
ROUTINE(X, syevBatched_bufferSize,
        (any h, any how, int job, int uplo, int64_t n, type t, any a, int64_t lda, type of_w, any w, type in,
         size_t *device, size_t *host, int64_t batch),
        answer_bytes(batch * (of_eigen(n) - 79), t, 352, device, host))
ROUTINE(X, geev_bufferSize,
        (any h, any how, int left, int right, int64_t n, type t, any a, int64_t lda, type of_w, any w, type of_vl,
         any vl, int64_t ldvl, type of_vr, any vr, int64_t ldvr, type in, size_t *device, size_t *host),
        answer_bytes((1 << 15) + n * n + 9 * n, t, 0, device, host))
ROUTINE(X, sytrs_bufferSize,
        (any h, int uplo, int64_t n, int64_t columns, type t, any a, int64_t lda, any pivots, type of_b, any b,
         int64_t ldb, size_t *device, size_t *host),
        answer_bytes(n * columns, t, 0, device, host))

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
