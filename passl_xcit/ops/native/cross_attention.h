// CrossViT's fusion: the class token of a branch + its attention to the LayerNorm of the other branch's tokens, with
// no MLP; for evaluation. Letters as in operators.h; the attention is that of class_attention.h.
#pragma once

#include "class_attention.h"

namespace passl_xcit {

template <class Isa>
struct CrossAttentionForward : ClassAttention<Isa> {
  using Base = ClassAttention<Isa>;

  const CrossAttention& op;

  explicit CrossAttentionForward(const CrossAttention& block) : Base(query_of(block)), op(block) {}

  size_t run(void* memory, const Team& team) {
    Workspace workspace(memory), packed(op.packed);
    take_weights(op.packed ? packed : workspace);
    this->take_values(workspace);
    if (memory && !op.packed) pack_weights(team);
    if (memory) compute(nullptr, team);
    return workspace.bytes();
  }

  void take_weights(Workspace& workspace) { this->take_attention(workspace); }
  void pack_weights(const Team& team) const { this->pack_attention(team); }

 protected:
  // `keep` [B] is what multiplies the update of each image, or null.
  void compute(const float* keep, const Team& team) const {
    this->attend(team);
    team.each(this->proj.count(), [&](int panel, int) { this->project(panel, nullptr, op.y, op.channels, keep); });
  }

  static ClassQuery query_of(const CrossAttention& op) {
    ClassQuery query{op.batch, op.tokens, op.channels, op.heads, op.channels, op.x, op.norm_weight, op.norm_bias};
    query.epsilon = op.epsilon;
    query.q_weight = op.wq_weight, query.k_weight = op.wk_weight, query.v_weight = op.wv_weight;
    query.q_bias = op.wq_bias, query.v_bias = op.wv_bias;
    query.proj_weight = op.proj_weight, query.proj_bias = op.proj_bias;
    return query;
  }
};

}  // namespace passl_xcit
