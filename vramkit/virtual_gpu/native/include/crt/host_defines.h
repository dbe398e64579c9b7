/* Stands in for the compiler part of the CUDA headers, which the wheels of the CUDA runtime leave out: the few macros
 * that the runtime's own headers use, as a plain C compiler needs them. Found last, after any real one. */
#ifndef VGPU_HOST_DEFINES_H
#define VGPU_HOST_DEFINES_H

#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDAAPI
#define __host__
#define __device__
#define __global__
#define __device_builtin__
#define __cudart_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __specialization_static static
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __annotate__(a) __attribute__((a))
#define __location__(a)

#endif
