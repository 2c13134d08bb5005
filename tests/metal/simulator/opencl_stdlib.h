// SPDX-License-Identifier: MIT
// Metal's names in C++ for OpenCL, whose front end knows address spaces; for test_static.py only.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION cl_khr_subgroups : enable

#define kernel __kernel
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define THREADGROUP_MEMORY(n)

// OpenCL writes (float4)(...). A macro does not expand in its own expansion.
#define float4(...) ((float4)(__VA_ARGS__))
#define ushort4(...) ((ushort4)(__VA_ARGS__))
#define ulong2(...) ((ulong2)(__VA_ARGS__))

template <class To, class From> To as_type(From x) { return __builtin_astype(x, To); }

namespace metal {
enum class mem_flags { mem_none, mem_device, mem_threadgroup };
mem_flags operator|(mem_flags a, mem_flags b);
void threadgroup_barrier(mem_flags flags);
void simdgroup_barrier(mem_flags flags);
template <class T> T simd_shuffle(T value, ushort lane);
template <class T> T simd_shuffle_xor(T value, ushort mask);
template <class T> T simd_shuffle_down(T value, ushort delta);
template <class T> T simd_sum(T value);
template <class T> T simd_max(T value);
template <class T> T simd_min(T value);

template <class T> struct matrix8x8 {
  matrix8x8() = default;
  explicit matrix8x8(T diagonal);
  T elements[2];
};
typedef matrix8x8<float> simdgroup_float8x8;
typedef matrix8x8<half> simdgroup_half8x8;
template <class T>
void simdgroup_load(thread matrix8x8<T> &m, const threadgroup T *from, ulong row,
                    ulong2 origin = ulong2(0, 0), bool transpose = false);
template <class T> void simdgroup_store(const thread matrix8x8<T> &m, threadgroup T *to, ulong row);
template <class D, class A, class B>
void simdgroup_multiply_accumulate(thread matrix8x8<D> &d, const thread matrix8x8<A> &a,
                                   const thread matrix8x8<B> &b, const thread matrix8x8<D> &c);
} // namespace metal
