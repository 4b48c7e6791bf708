// Conversions between IEEE 754 binary formats, by their bits: what a processor without half precision calls. The names
// and parameters are those that the runtime's sources use; `Bits` are of the stored significand.
#ifndef BUILTIN_FP16_H_
#define BUILTIN_FP16_H_

#include <climits>
#include <cstdint>
#include <cstring>

namespace fleet {

template <typename Rep, int Bits>
struct Format {
  static constexpr int kWidth = sizeof(Rep) * CHAR_BIT;
  static constexpr int kSpecial = (1 << (kWidth - 1 - Bits)) - 1;
  static constexpr int kBias = kSpecial >> 1;
  static constexpr Rep kHidden = Rep{1} << Bits;
  static constexpr Rep kInfinity = static_cast<Rep>(static_cast<Rep>(kSpecial) << Bits);
  static constexpr Rep kQuiet = Rep{1} << (Bits - 1);
};

template <typename To, typename From>
To BitCast(const From& value) {
  static_assert(sizeof(To) == sizeof(From), "another size");
  To bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// To nearest, ties to even.
template <typename Rep>
Rep ShiftedRound(Rep value, int shift) {
  const Rep quotient = value >> shift, rest = value & ((Rep{1} << shift) - 1), half = Rep{1} << (shift - 1);
  return quotient + (rest > half || (rest == half && (quotient & 1)));
}

}  // namespace fleet

// A wider format to a narrower one.
template <typename Src, typename SrcRep, int SrcBits, typename Dst, typename DstRep, int DstBits>
Dst __truncXfYf2__(Src value) {
  using From = fleet::Format<SrcRep, SrcBits>;
  using To = fleet::Format<DstRep, DstBits>;
  const SrcRep bits = fleet::BitCast<SrcRep>(value), sign = bits >> (From::kWidth - 1);
  const SrcRep magnitude = bits & ~(SrcRep{1} << (From::kWidth - 1)), fraction = magnitude & (From::kHidden - 1);
  const int exponent = static_cast<int>(magnitude >> SrcBits) - From::kBias + To::kBias;
  SrcRep result;
  if (magnitude > From::kInfinity) {
    result = To::kInfinity | To::kQuiet | (fraction >> (SrcBits - DstBits));
  } else if (exponent >= To::kSpecial) {
    result = To::kInfinity;
  } else if (exponent > 0) {
    // A significand that rounds up to two carries into the exponent, and at last into infinity: both are right.
    result = (static_cast<SrcRep>(exponent) << DstBits) + fleet::ShiftedRound(fraction, SrcBits - DstBits);
  } else if (exponent >= -DstBits) {
    result = fleet::ShiftedRound(static_cast<SrcRep>(fraction | From::kHidden), SrcBits - DstBits + 1 - exponent);
  } else {
    result = 0;
  }
  return fleet::BitCast<Dst>(static_cast<DstRep>(result | sign << (To::kWidth - 1)));
}

// A narrower format to a wider one: exact.
template <typename Src, typename SrcRep, int SrcBits, typename Dst, typename DstRep, int DstBits>
Dst __extendXfYf2__(Src value) {
  using From = fleet::Format<SrcRep, SrcBits>;
  using To = fleet::Format<DstRep, DstBits>;
  const DstRep bits = fleet::BitCast<SrcRep>(value), sign = bits >> (From::kWidth - 1);
  DstRep magnitude = bits & ((DstRep{1} << (From::kWidth - 1)) - 1);
  DstRep result;
  if (magnitude >= From::kInfinity) {
    result = To::kInfinity | (magnitude & (From::kHidden - 1)) << (DstBits - SrcBits);
    if (magnitude > From::kInfinity) result |= To::kQuiet;
  } else if (magnitude >= From::kHidden) {
    result = (magnitude << (DstBits - SrcBits)) + (static_cast<DstRep>(To::kBias - From::kBias) << DstBits);
  } else if (magnitude != 0) {
    int exponent = To::kBias - From::kBias + 1;
    for (; magnitude < From::kHidden; --exponent) magnitude <<= 1;
    result = (magnitude - From::kHidden) << (DstBits - SrcBits) | static_cast<DstRep>(exponent) << DstBits;
  } else {
    result = 0;
  }
  return fleet::BitCast<Dst>(static_cast<DstRep>(result | sign << (To::kWidth - 1)));
}

#endif  // BUILTIN_FP16_H_
