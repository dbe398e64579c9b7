/* cuFFT: plans that know how large a work area they want. Executing one is a generated stub.
 *
 * Fitted to 648 plans of cuFFT 12 on an H200 (benchmarks/real_gpu/recordings; benchmarks/test_work_areas.py): most want
 * none. Longer transforms, and in double precision other lengths than powers of two, want a copy of their complex data;
 * of real data that is the complex half. A length with a prime factor above 127 goes by Bluestein's algorithm from some
 * length on, with two buffers of its convolution. Where between two lengths that were asked a rule begins is assumed. */
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
/* Whether one kernel can't hold a transform of this length. */
static bool is_long(long long length, bool real, bool wide, bool first) {
  if ((length & (length - 1)) == 0) return length > (real && wide ? 1 << 12 : 1 << 14);
  if (!is_smooth(length)) return length > (real ? 127 : 1 << 12);
  return length > (!first ? wide ? 1 << 9 : 1 << 12 : real || wide ? 1 << 11 : 1 << 14);
}
static size_t of_one(size_t length, size_t batch, bool real, bool wide) {
  const bool smooth = is_smooth((long long)length), odd = length % 2;
  const size_t convolution = ROUND_UP(2 * length - 1, 512), pairs = (batch + 1) / 2;
  if (!is_long((long long)length, real, wide, true)) return 0;
  if (!real) return batch * (smooth ? length : 2 * convolution);
  if (odd && !smooth) return pairs * (length + (length > 1 << 12 ? 2 * convolution : length));
  return batch * (length / 2 + (length >= 1 << 16));
}
static size_t of_many(int rank, const long long *lengths, size_t batch, bool real, bool wide) {
  size_t total = batch;
  bool copies = false;
  for (int i = 0; i < rank; i++) {
    copies = copies || is_long(lengths[i], real && i == rank - 1, wide, i == rank - 1);
    total *= real && i == rank - 1 ? (size_t)lengths[i] / 2 + 1 : (size_t)lengths[i];
  }
  return copies ? total : 0;
}

API int cufftXtMakePlanMany(int plan UNUSED, int rank, long long *lengths, long long *in_embed UNUSED,
                            long long in_stride UNUSED, long long in_distance UNUSED, cudaDataType in,
                            long long *out_embed UNUSED, long long out_stride UNUSED, long long out_distance UNUSED,
                            cudaDataType out, long long batch, size_t *size, cudaDataType execution) {
  const size_t unit = complex_size(execution);
  const bool real = is_real(in) || is_real(out), wide = unit == 16;
  *size = unit * (rank == 1 ? of_one((size_t)lengths[0], (size_t)batch, real, wide)
                            : of_many(rank, lengths, (size_t)batch, real, wide));
  trace("a cuFFT plan wants %zu bytes of work area", *size);
  return 0;
}
