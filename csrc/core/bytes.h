// Memory with an alignment that no load of a vector crosses a cache line for.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

namespace stdc {

class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t size) : size_(size) {
    if (size) data_ = static_cast<char*>(::operator new(size, std::align_val_t(64)));
  }
  ~Bytes() {
    if (data_) ::operator delete(data_, std::align_val_t(64));
  }
  Bytes(Bytes&& o) noexcept : data_(o.data_), size_(o.size_) { o.data_ = nullptr, o.size_ = 0; }
  Bytes& operator=(Bytes&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    return *this;
  }

  char* data() const { return data_; }
  const float* floats() const { return reinterpret_cast<const float*>(data_); }
  size_t size() const { return size_; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

inline Bytes zeros(size_t size) {
  Bytes b(size);
  std::memset(b.data(), 0, size);
  return b;
}

}  // namespace stdc
