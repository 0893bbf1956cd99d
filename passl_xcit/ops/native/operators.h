// What Python asks for: one struct an operator, filled by passl_xcit/ops/library.py in this order, and the table of
// implementations that each instruction set brings.
//
// Shapes: B images, N = H * W tokens, M = N + 1 tokens with the class token, C channels, h heads of d = C / h channels,
// F hidden channels of the MLP, p patch size. Matrices are row-major [in, out], as Paddle's Linear has them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "parallel.h"

namespace passl_xcit {

// All pointers are to float32 without gaps; a null bias is a bias of zero. `packed` is null, or what the operator
// <name>_packed made of the same parameters: matrices and convolutions are not read again then.
struct XcaBlock {
  int64_t batch, height, width, channels, heads, hidden;
  const float* x;                                                              // [B, N, C]
  float* y;                                                                    // [B, N, C]
  void* packed;
  const float *norm1_weight, *norm1_bias;                                      // [C]
  const float *temperature, *qkv_weight, *qkv_bias, *proj_weight, *proj_bias;  // [h], [C, 3C], [3C], [C, C]
  const float* gamma1;                                                         // [C]
  const float *norm3_weight, *norm3_bias;                                      // [C]
  const float *conv1_weight, *conv1_bias;                                      // [C, 1, 3, 3], [C]
  const float *bn_weight, *bn_bias, *bn_mean, *bn_variance;                    // [C]
  const float *conv2_weight, *conv2_bias;                                      // [C, 1, 3, 3], [C]
  const float* gamma3;                                                         // [C]
  const float *norm2_weight, *norm2_bias;                                      // [C]
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;                  // [C, F], [F], [F, C], [C]
  const float* gamma2;                                                         // [C]
};

struct ClassBlock {
  int64_t batch, tokens, channels, heads, hidden, tokens_norm;   // tokens is M
  const float* x;                                                // [B, M, C]
  float* y;                                                      // [B, M, C]
  void* packed;
  const float *norm1_weight, *norm1_bias;                        // [C]
  const float *qkv_weight, *qkv_bias, *proj_weight, *proj_bias;  // [C, 3C], [3C], [C, C], [C]
  const float* gamma1;                                           // [C]
  const float *norm2_weight, *norm2_bias;                        // [C]
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;    // [C, F], [F], [F, C], [C]
  const float* gamma2;                                           // [C]
};

// The pre-norm block of a vision transformer.
struct AttentionBlock {
  int64_t batch, tokens, channels, heads, hidden;                // tokens is M
  double epsilon1, epsilon2;                                     // of the LayerNorms
  const float* x;                                                // [B, M, C]
  float* y;                                                      // [B, M, C]
  void* packed;
  const float *norm1_weight, *norm1_bias;                        // [C]
  const float *qkv_weight, *qkv_bias, *proj_weight, *proj_bias;  // [C, 3C], [3C], [C, C], [C]
  const float *norm2_weight, *norm2_bias;                        // [C]
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;    // [C, F], [F], [F, C], [C]
};

// The same in training: drop path by a factor for each image.
struct AttentionTraining {
  AttentionBlock block;
  const float *keep1, *keep2;  // [B], what multiplies the two updates, or null
  float* saved;                // what the backward pass needs; written by the forward pass
};

// Of the loss, by everything.
struct AttentionGradients {
  const float* dy;  // [B, M, C]
  float* dx;        // [B, M, C]
  float *norm1_weight, *norm1_bias;
  float *qkv_weight, *qkv_bias, *proj_weight, *proj_bias;
  float *norm2_weight, *norm2_bias;
  float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
};

struct AttentionBackward {
  AttentionTraining forward;
  AttentionGradients gradients;
};

// CrossViT's fusion of a class token with the tokens that follow it.
struct CrossAttention {
  int64_t batch, tokens, channels, heads;        // tokens is M
  double epsilon;                                // of the LayerNorm
  const float* x;                                // [B, M, C]
  float* y;                                      // [B, C]
  void* packed;
  const float *norm_weight, *norm_bias;          // [C]
  const float *wq_weight, *wq_bias, *wk_weight;  // [C, C], [C], [C, C]; the keys' bias changes nothing
  const float *wv_weight, *wv_bias;              // [C, C], [C]
  const float *proj_weight, *proj_bias;          // [C, C], [C]
};

// CrossAttention in training: drop path by a factor for each image.
struct CrossTraining {
  CrossAttention block;
  const float* keep;  // [B], what multiplies the update, or null
  float* saved;       // what the backward pass needs; written by the forward pass
};

struct CrossGradients {
  const float* dy;  // [B, C]
  float* dx;        // [B, M, C]
  float *norm_weight, *norm_bias;
  float *wq_weight, *wq_bias, *wk_weight, *wv_weight, *wv_bias;
  float *proj_weight, *proj_bias;
};

struct CrossBackward {
  CrossTraining forward;
  CrossGradients gradients;
};

// ClassBlock in training.
struct ClassTraining {
  ClassBlock block;
  float* saved;  // what the backward pass needs; written by the forward pass
};

struct ClassGradients {
  const float* dy;  // [B, M, C]
  float* dx;        // [B, M, C]
  float *norm1_weight, *norm1_bias;
  float *qkv_weight, *qkv_bias, *proj_weight, *proj_bias;
  float* gamma1;
  float *norm2_weight, *norm2_bias;
  float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
  float* gamma2;
};

struct ClassBackward {
  ClassTraining forward;
  ClassGradients gradients;
};

// XcaBlock in training: BatchNorm by the batch's own statistics, drop path by a factor for each image.
struct XcaTraining {
  XcaBlock block;
  const float *keep1, *keep3, *keep2;  // [B], what multiplies the three updates, or null
  float *mean, *variance;              // [C], of BatchNorm's input; written by the forward pass
  float* saved;                        // what the backward pass needs; written by the forward pass
};

// Of the loss, by everything: the fields of XcaBlock without BatchNorm's buffers.
struct XcaGradients {
  const float* dy;  // [B, N, C]
  float* dx;        // [B, N, C]
  float *norm1_weight, *norm1_bias;
  float *temperature, *qkv_weight, *qkv_bias, *proj_weight, *proj_bias;
  float* gamma1;
  float *norm3_weight, *norm3_bias;
  float *conv1_weight, *conv1_bias;
  float *bn_weight, *bn_bias;
  float *conv2_weight, *conv2_bias;
  float* gamma3;
  float *norm2_weight, *norm2_bias;
  float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
  float* gamma2;
};

struct XcaBackward {
  XcaTraining forward;
  XcaGradients gradients;
};

constexpr int kMaxStages = 8;

struct Stem {
  int64_t batch, height, width, stages, widths[kMaxStages + 1];  // height and width of the images; channels, in and out
  const float* images;                                           // [B, widths[0], height, width]
  const float* positions;                                        // [N, C]
  float* y;                                                      // [B, N, C]
  void* packed;
  const float* weights[kMaxStages];                              // [widths[i + 1], widths[i], 3, 3]
  const float *bn_weight[kMaxStages], *bn_bias[kMaxStages];      // [widths[i + 1]]
  const float *bn_mean[kMaxStages], *bn_variance[kMaxStages];
};

// Stem in training: BatchNorm by the batch's own statistics.
struct StemTraining {
  Stem stem;
  float *mean[kMaxStages], *variance[kMaxStages];  // [widths[i + 1]], of BatchNorm's input; written by the forward pass
  float* saved;                                    // what the backward pass needs; written by the forward pass
};

struct StemGradients {
  const float* dy;            // [B, N, C]
  float *images, *positions;  // null where they are not wanted
  float* weights[kMaxStages];
  float *bn_weight[kMaxStages], *bn_bias[kMaxStages];
};

struct StemBackward {
  StemTraining forward;
  StemGradients gradients;
};

// Some tensors of one optimizer; see update.h.
struct AdamWTensor {
  float* weight;
  const float* gradient;
  float *moment1, *moment2;
  float *beta1_power, *beta2_power;  // beta^t of this step, the t-th; afterwards those of the next
  int64_t size, decays;
};

struct AdamW {
  int64_t count;
  const AdamWTensor* tensors;
  double rate, decay, beta1, beta2, epsilon;
};

struct AveragedTensor {
  float* average;
  const float* value;
  int64_t size;
};

struct Average {
  int64_t count;
  const AveragedTensor* tensors;
  double decay;
};

struct SquaredTensor {
  const float* value;
  int64_t size;
};

struct Squares {
  int64_t count;
  const SquaredTensor* tensors;
  double* sum;
};

// What Python calls by a name. It returns the bytes of the workspace it needs, and computes only where one is given;
// operators whose names end in "_saved" compute nothing: they return the bytes of `saved`.
struct Operator {
  const char* name;
  size_t (*run)(const void* of, void* workspace, const Team&);  // `of` is the struct of that operator
};

// Those of each instruction set, up to one without a name.
const Operator* avx2_operators();
const Operator* avx512_operators();
const Operator* avx512_bf16_operators();

}  // namespace passl_xcit
