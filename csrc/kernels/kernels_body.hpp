// All kernels of one instruction set; included by one file per set, which is compiled with that set's flags.
#include "kernels/dequantised_sum_body.hpp"
#include "kernels/quantise_body.hpp"
#include "kernels/reduce_body.hpp"
#include "kernels/weighted_sum_body.hpp"

#define XCCL_FOR_TYPES(kernel, code) {kernel<Float32, code>, kernel<Float16, code>, kernel<BFloat16, code>}

#define XCCL_DEFINE_KERNELS(set)                                                 \
  const Kernels set##_kernels{                                                   \
      #set,                                                                      \
      weighted_sum<Float32>,                                                     \
      weighted_sum<Float16>,                                                     \
      weighted_sum<BFloat16>,                                                    \
      {{sum<Float32>, sum<Float16>, sum<BFloat16>, sum<Int64>},                  \
       {largest<Float32>, largest<Float16>, largest<BFloat16>, largest<Int64>}}, \
      {XCCL_FOR_TYPES(quantise, Int8Code), XCCL_FOR_TYPES(quantise, Fp8Code)},   \
      {XCCL_FOR_TYPES(dequantised_sum, Int8Code), XCCL_FOR_TYPES(dequantised_sum, Fp8Code)}};
