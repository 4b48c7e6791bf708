// Memory for many small things that go together.
#ifndef TVM_SUPPORT_ARENA_H_
#define TVM_SUPPORT_ARENA_H_

#include <algorithm>
#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

namespace tvm {
namespace support {

// Begins every page; `offset` is where its free part begins.
struct ArenaPageHeader {
  ArenaPageHeader* next;
  size_t size;
  size_t offset;
};

template <typename PageAllocator>
class GenericArena {
 public:
  explicit GenericArena(PageAllocator allocator = PageAllocator()) : allocator_(std::move(allocator)) {}
  GenericArena(const GenericArena&) = delete;
  GenericArena& operator=(const GenericArena&) = delete;
  ~GenericArena() { FreeAll(); }

  // Room for `count` of them, which are not made yet and whose destructors never run.
  template <typename T>
  T* allocate_(int count = 1) {
    static_assert(PageAllocator::kPageAlign % alignof(T) == 0, "pages are not aligned for this");
    return static_cast<T*>(Take(sizeof(T) * static_cast<size_t>(count), alignof(T)));
  }

  template <typename T, typename... Args>
  T* make(Args&&... args) {
    static_assert(std::is_trivially_destructible_v<T>, "nothing destroys it");
    return new (allocate_<T>()) T(std::forward<Args>(args)...);
  }

  // Everything is free again, and its pages are kept for what comes.
  void RecycleAll() {
    while (used_ != nullptr) {
      ArenaPageHeader* page = std::exchange(used_, used_->next);
      page->offset = sizeof(ArenaPageHeader);
      page->next = std::exchange(spare_, page);
    }
  }

  void FreeAll() {
    RecycleAll();
    while (spare_ != nullptr) allocator_.deallocate(std::exchange(spare_, spare_->next));
  }

 private:
  static size_t Aligned(size_t offset, size_t alignment) { return (offset + alignment - 1) / alignment * alignment; }

  void* Take(size_t size, size_t alignment) {
    if (used_ == nullptr || Aligned(used_->offset, alignment) + size > used_->size) Open(size + alignment);
    const size_t start = Aligned(used_->offset, alignment);
    used_->offset = start + size;
    return reinterpret_cast<char*>(used_) + start;
  }

  // Have a page with so many free bytes in front.
  void Open(size_t size) {
    ArenaPageHeader* page = nullptr;
    for (ArenaPageHeader** link = &spare_; *link != nullptr; link = &(*link)->next) {
      if ((*link)->size >= sizeof(ArenaPageHeader) + size) {
        page = std::exchange(*link, (*link)->next);
        break;
      }
    }
    if (page == nullptr) page = allocator_.allocate(sizeof(ArenaPageHeader) + size);
    page->next = std::exchange(used_, page);
  }

  PageAllocator allocator_;
  ArenaPageHeader* used_ = nullptr;
  ArenaPageHeader* spare_ = nullptr;
};

class HeapPages {
 public:
  static constexpr size_t kPageSize = 16 << 10;
  static constexpr size_t kPageAlign = 16;

  ArenaPageHeader* allocate(size_t size) {
    size = std::max(size, kPageSize);
    auto* page = static_cast<ArenaPageHeader*>(::operator new(size, std::align_val_t{kPageAlign}));
    *page = {nullptr, size, sizeof(ArenaPageHeader)};
    return page;
  }
  void deallocate(ArenaPageHeader* page) { ::operator delete(page, std::align_val_t{kPageAlign}); }
};

using Arena = GenericArena<HeapPages>;

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_ARENA_H_
