/* Numbers of every type that NCCL knows, one at a time. It knows bits, and no communicator. */
#include "vgpu.h"

size_t number_size(int type) {
  switch (type) {
  case INT64:
  case UINT64:
  case DOUBLE: return 8;
  case INT32:
  case UINT32:
  case FLOAT: return 4;
  case HALF:
  case BFLOAT16: return 2;
  default: return 1;
  }
}

static float of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
static float of_half(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  return of_bits(sign | to_bits(of_bits(rest << 13) * 0x1p112f));
}
/* Adding a power of two makes the adder round where the shorter mantissa ends, to even. */
static uint16_t to_half(float value) {
  uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (rest < 0x38800000) return (uint16_t)(sign | (to_bits(of_bits(rest) + 0.5f) & 0xffff));
  return (uint16_t)(sign | (rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13);
}

long double number_load(const char *at, size_t index, int type) {
  switch (type) {
  case INT8: return ((const int8_t *)at)[index];
  case INT32: return ((const int32_t *)at)[index];
  case UINT32: return ((const uint32_t *)at)[index];
  case INT64: return ((const int64_t *)at)[index];
  case UINT64: return ((const uint64_t *)at)[index];
  case HALF: return of_half(((const uint16_t *)at)[index]);
  case FLOAT: return ((const float *)at)[index];
  case DOUBLE: return ((const double *)at)[index];
  case BFLOAT16: return of_bits((uint32_t)((const uint16_t *)at)[index] << 16);
  default: return ((const uint8_t *)at)[index];
  }
}
void number_store(char *at, size_t index, int type, long double value) {
  uint32_t bits = to_bits((float)value);
  switch (type) {
  case INT8: ((int8_t *)at)[index] = (int8_t)value; return;
  case INT32: ((int32_t *)at)[index] = (int32_t)value; return;
  case UINT32: ((uint32_t *)at)[index] = (uint32_t)value; return;
  case INT64: ((int64_t *)at)[index] = (int64_t)value; return;
  case UINT64: ((uint64_t *)at)[index] = (uint64_t)value; return;
  case HALF: ((uint16_t *)at)[index] = to_half((float)value); return;
  case FLOAT: ((float *)at)[index] = (float)value; return;
  case DOUBLE: ((double *)at)[index] = (double)value; return;
  case BFLOAT16: ((uint16_t *)at)[index] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16); return;
  default: ((uint8_t *)at)[index] = (uint8_t)value; return;
  }
}
