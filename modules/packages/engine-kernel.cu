// A kernel such as an engine compiles while it starts: FP8 types, CUB, and the C library's mathematics.
#include <cmath>
#include <cub/cub.cuh>
#include <cuda_fp8.h>

__global__ void scale(float *x, __nv_fp8_e4m3 *y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = __nv_fp8_e4m3(rsqrtf(x[i]));
}

extern "C" void run(float *x, __nv_fp8_e4m3 *y, int n) { scale<<<(n + 255) / 256, 256>>>(x, y, n); }
