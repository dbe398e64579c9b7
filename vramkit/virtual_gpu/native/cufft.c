/* cuFFT: plans that know how large a work area they want. Executing one is a generated stub.
 *
 * Assumed: a transform wants a second copy of its complex data. So say published figures for two and three dimensions
 * (arrayfire issue 1443: 100 x 100k wants 80000k bytes; CUDA.jl issue 894: 512 x 512 wants 2 MiB, 32 of them 64 MiB).
 * Of real data it is the complex half. A dimension with a prime factor above 127 goes by Bluestein's algorithm, whose
 * two buffers are as long as the power of two that holds the convolution: at most the eightfold, which cuFFT's manual
 * gives as the worst case. */
#include "vgpu.h"

#include <library_types.h>
#include <stdatomic.h>

API int cufftCreate(int *plan) {
  static _Atomic int made;
  return *plan = atomic_fetch_add(&made, 1) + 1, 0;
}
API int cufftDestroy(int plan UNUSED) { return 0; }

static size_t complex_size(cudaDataType type) {
  switch (type) {
  case CUDA_R_64F:
  case CUDA_C_64F: return 16;
  case CUDA_R_32F:
  case CUDA_C_32F: return 8;
  default: return 4;
  }
}
static bool is_real(cudaDataType type) { return type == CUDA_R_16F || type == CUDA_R_32F || type == CUDA_R_64F; }
static bool is_smooth(long long length) {
  for (long long factor = 2; factor <= 127 && length > 1; factor++)
    while (length % factor == 0) length /= factor;
  return length == 1;
}

API int cufftXtMakePlanMany(int plan UNUSED, int rank, long long *lengths, long long *in_embed UNUSED,
                            long long in_stride UNUSED, long long in_distance UNUSED, cudaDataType in,
                            long long *out_embed UNUSED, long long out_stride UNUSED, long long out_distance UNUSED,
                            cudaDataType out, long long batch, size_t *size, cudaDataType execution) {
  size_t total = (size_t)batch * complex_size(execution);
  bool smooth = true;
  for (int i = 0; i < rank; i++) {
    size_t length = (size_t)lengths[i];
    if (!is_smooth(lengths[i])) {
      size_t padded = 1;
      while (padded < 2 * length - 1) padded *= 2;
      length = padded, smooth = false;
    } else if (i == rank - 1 && (is_real(in) || is_real(out)))
      length = length / 2 + 1;
    total *= length;
  }
  *size = smooth ? total : 2 * total;
  trace("a cuFFT plan wants %zu bytes of work area", *size);
  return 0;
}
