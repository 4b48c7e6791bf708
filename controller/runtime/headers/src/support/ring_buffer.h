// A queue of bytes that grows: what has arrived from, or has to go to, the other end of an RPC session.
#ifndef TVM_SUPPORT_RING_BUFFER_H_
#define TVM_SUPPORT_RING_BUFFER_H_

#include <tvm/ffi/error.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace tvm {
namespace support {

class RingBuffer {
 public:
  RingBuffer() : bytes_(kLeast) {}

  size_t bytes_available() const { return held_; }
  size_t capacity() const { return bytes_.size(); }

  // Have room for so many bytes in all.
  void Reserve(size_t size) {
    if (size <= bytes_.size()) return;
    std::vector<char> larger(std::max(size, 2 * bytes_.size()));
    const size_t first = std::min(held_, bytes_.size() - head_);
    std::memcpy(larger.data(), bytes_.data() + head_, first);
    std::memcpy(larger.data() + first, bytes_.data(), held_ - first);
    bytes_ = std::move(larger);
    head_ = 0;
  }

  // Take the oldest bytes out.
  void Read(void* data, size_t size) {
    TVM_FFI_ICHECK_LE(size, held_);
    const size_t first = std::min(size, bytes_.size() - head_);
    std::memcpy(data, bytes_.data() + head_, first);
    std::memcpy(static_cast<char*>(data) + first, bytes_.data(), size - first);
    Drop(size);
  }

  void Write(const void* data, size_t size) {
    Reserve(held_ + size);
    const size_t tail = Tail(), first = std::min(size, bytes_.size() - tail);
    std::memcpy(bytes_.data() + tail, data, first);
    std::memcpy(bytes_.data(), static_cast<const char*>(data) + first, size - first);
    held_ += size;
  }

  // Offer up to `size` of the oldest bytes that lie in one piece to `send`, which says how many it took.
  template <typename Send>
  size_t ReadWithCallback(Send send, size_t size) {
    const size_t taken = send(bytes_.data() + head_, std::min({size, held_, bytes_.size() - head_}));
    Drop(taken);
    return taken;
  }

  // Have `receive` put up to `size` bytes into one piece of room; it says how many it had.
  template <typename Receive>
  size_t WriteWithCallback(Receive receive, size_t size) {
    Reserve(held_ + size);
    const size_t tail = Tail(), got = receive(bytes_.data() + tail, std::min(size, bytes_.size() - tail));
    held_ += got;
    return got;
  }

 private:
  static constexpr size_t kLeast = 4096;
  // A transfer of weights leaves a large buffer behind, which a small board has better use for.
  static constexpr size_t kMost = size_t{4} << 20;

  size_t Tail() const { return (head_ + held_) % bytes_.size(); }

  void Drop(size_t size) {
    head_ = (head_ + size) % bytes_.size();
    held_ -= size;
    if (held_ == 0) {
      head_ = 0;
      if (bytes_.size() > kMost) bytes_ = std::vector<char>(kLeast);
    }
  }

  std::vector<char> bytes_;
  size_t head_ = 0;
  size_t held_ = 0;
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_RING_BUFFER_H_
