// Base 64 (RFC 4648) over another stream.
#ifndef TVM_SUPPORT_BASE64_H_
#define TVM_SUPPORT_BASE64_H_

#include <tvm/support/io.h>

#include <cstdint>
#include <cstring>

namespace tvm {
namespace support {

constexpr char kBase64Digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// Encodes what is written. `Finish` writes the last, incomplete group.
class Base64OutStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;

  explicit Base64OutStream(Stream* out) : out_(out) {}

  size_t Read(void*, size_t) override { TVM_FFI_THROW(InternalError) << "this stream is written only"; }
  size_t Write(const void* data, size_t size) override {
    const auto* bytes = static_cast<const uint8_t*>(data);
    for (size_t i = 0; i < size; ++i) {
      bits_ = bits_ << 8 | bytes[i];
      if (++held_ == 3) Emit(4);
    }
    return size;
  }
  void Finish() {
    if (held_ == 0) return;
    const int digits = held_ + 1;
    bits_ <<= 8 * (3 - held_);
    Emit(digits);
  }

 private:
  void Emit(int digits) {
    char group[4] = {'=', '=', '=', '='};
    for (int i = 0; i < digits; ++i) group[i] = kBase64Digits[bits_ >> (18 - 6 * i) & 63];
    out_->Write(static_cast<const void*>(group), sizeof(group));
    bits_ = 0;
    held_ = 0;
  }

  Stream* out_;
  uint32_t bits_ = 0;
  int held_ = 0;
};

// Decodes what is read; what is no digit is passed over, but for '=', which ends it.
class Base64InStream : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;

  explicit Base64InStream(Stream* in) : in_(in) {}

  void InitPosition() {
    bits_ = 0;
    held_ = 0;
  }
  size_t Read(void* data, size_t size) override {
    auto* bytes = static_cast<uint8_t*>(data);
    for (size_t done = 0; done < size; ++done) {
      while (held_ < 8) {
        const int digit = Digit();
        if (digit < 0) return done;
        bits_ = bits_ << 6 | static_cast<uint32_t>(digit);
        held_ += 6;
      }
      held_ -= 8;
      bytes[done] = static_cast<uint8_t>(bits_ >> held_);
    }
    return size;
  }
  size_t Write(const void*, size_t) override { TVM_FFI_THROW(InternalError) << "this stream is read only"; }

 private:
  int Digit() {
    char symbol;
    while (in_->Read(static_cast<void*>(&symbol), 1) == 1 && symbol != '=') {
      if (symbol == '\0') continue;
      if (const char* found = std::strchr(kBase64Digits, symbol)) return static_cast<int>(found - kBase64Digits);
    }
    return -1;
  }

  Stream* in_;
  uint32_t bits_ = 0;
  int held_ = 0;
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_BASE64_H_
