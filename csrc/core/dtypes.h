// The table of dtypes: everything about one that is no row kernel.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "kernels.h"

namespace stdc {

struct DTypeTraits {
  const char* name;
  int64_t bytes;
  int unit;      // input channels that a product takes at once, next to each other in packed weights
  bool maps;     // whether a plan may be of it
  bool weights;  // whether weights may be of it
  float (*value)(const void* data, int64_t index);
  void (*put)(void* data, int64_t index, float value);  // rounded to nearest, ties to even; null: nothing is rounded to it
};

inline const DTypeTraits& traits(DType dtype) {
  static const DTypeTraits all[kDTypes] = {
      {"float32", 4, 1, true, true, [](const void* data, int64_t i) { return static_cast<const float*>(data)[i]; },
       [](void* data, int64_t i, float x) { static_cast<float*>(data)[i] = x; }},
      {"bfloat16", 2, 2, true, true,
       [](const void* data, int64_t i) {
         const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(data)[i]) << 16;
         float x;
         std::memcpy(&x, &bits, sizeof(x));
         return x;
       },
       [](void* data, int64_t i, float x) {
         uint32_t bits;
         std::memcpy(&bits, &x, sizeof(x));
         const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
         static_cast<uint16_t*>(data)[i] = static_cast<uint16_t>(x != x ? 0x7fc0u | bits >> 16 : rounded);
       }},
      {"uint8", 1, 4, false, false,
       [](const void* data, int64_t i) { return static_cast<float>(static_cast<const uint8_t*>(data)[i]); },
       nullptr},
      {"int8", 1, 4, false, true,
       [](const void* data, int64_t i) { return static_cast<float>(static_cast<const int8_t*>(data)[i]); },
       nullptr},
  };
  return all[static_cast<int>(dtype)];
}

// Whether there is a dtype of this name; it is put into `found`.
inline bool find_dtype(const std::string& name, DType& found) {
  for (int i = 0; i < kDTypes; i++)
    if (name == traits(static_cast<DType>(i)).name) {
      found = static_cast<DType>(i);
      return true;
    }
  return false;
}

// For messages.
inline std::string dtype_names() {
  std::string names;
  for (int i = 0; i < kDTypes; i++) names += (i ? ", " : "") + std::string(traits(static_cast<DType>(i)).name);
  return names;
}

}  // namespace stdc
