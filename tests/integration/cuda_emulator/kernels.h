// CUDA C++ as TVM writes it, for this processor: see device.cc.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;
struct Dim { unsigned x, y, z; };
extern "C" Dim emulated_thread, emulated_block, emulated_block_dim;
extern "C" void emulated_syncthreads();
extern "C" uint64_t emulated_shuffle(uint64_t value, unsigned lane);
extern "C" unsigned emulated_lane();
#define CUDART_INF_F __builtin_inff()
#define threadIdx emulated_thread
#define blockIdx emulated_block
#define blockDim emulated_block_dim
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __syncthreads emulated_syncthreads
#define __syncwarp(...)
#define __align__(n) __attribute__((aligned(n)))

#define VECTORS(T, NAME) \
  struct alignas(2 * sizeof(T)) NAME##2 { T x, y; }; \
  struct NAME##3 { T x, y, z; }; \
  struct alignas(4 * sizeof(T)) NAME##4 { T x, y, z, w; }; \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; } \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; } \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTORS(float, float)
VECTORS(int, int)
VECTORS(uint, uint)
VECTORS(uchar, uchar)
VECTORS(signed char, char)
VECTORS(short, short)
VECTORS(ushort, ushort)

template <class T> static inline T max(T a, T b) { return a > b ? a : b; }
template <class T> static inline T min(T a, T b) { return a < b ? a : b; }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline uint __activemask() { return 0xffffffffu; }
template <class T> static inline T atomicAdd(T* at, T value) { T old = *at; *at = old + value; return old; }
template <class T> static inline T __ldg(const T* at) { return *at; }

template <class T> static inline T shuffled(T value, unsigned lane) {
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = emulated_shuffle(bits, lane);
  memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T> static inline T __shfl_sync(uint, T value, int lane, int) { return shuffled(value, unsigned(lane)); }
template <class T> static inline T __shfl_down_sync(uint, T value, int by, int) { return shuffled(value, emulated_lane() + by); }
template <class T> static inline T __shfl_up_sync(uint, T value, int by, int) { return shuffled(value, emulated_lane() - by); }
