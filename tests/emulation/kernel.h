/* tests/emulation/kernel.h: what a kernel under emulation runs on: its threads as fibers, the
 * accessors through which every load and store is seen, and the launch.
 *
 * Blocks run one after the other, the threads of a block in turns: one runs until it waits at a
 * barrier or a warp operation.  global<T> and shared<T> stand for T * in device and shared memory
 * (kernels/cuda/launch.h names them sf_global and sf_shared); x[i] is a proxy whose reading and
 * writing is checked before it happens. */
#ifndef SHEAF_TESTS_EMULATION_KERNEL_H
#define SHEAF_TESTS_EMULATION_KERNEL_H
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

struct dim3;
struct emu_stream;

namespace emu {

struct site { const char *file; int line; };
struct index3 { unsigned x, y, z; };
enum shuffle_kind { SHUFFLE, SHUFFLE_XOR, SHUFFLE_UP, SHUFFLE_DOWN };

/* The thread that runs now, and the grid and block that it belongs to. */
struct thread_view { index3 thread; };
struct grid_view { index3 block, block_size, size; };
extern thread_view *self;
extern grid_view grid;

void barrier(site);
struct warp_syncer {                    /* __syncwarp() with its place, or __syncwarp(mask) */
    site at;
    void operator()(unsigned mask = 0xffffffffu) const;
};
uint64_t warp_exchange(site, unsigned mask, uint64_t value, shuffle_kind, int by);
unsigned ballot(site, unsigned mask, bool truth);
/* The running thread calls a special function (cuda_runtime.h), outside of kernels nothing. */
void special_called();
/* d [16][8] += a [16][16] b [16][8], each spread over the 32 lanes of a warp as by mma.m16n8k16:
 * the lane's 4 floats of d, 4 words of a, 2 words of b, of two 16-bit elements each. */
void mma(site, float (*widen)(uint16_t), float *d, const uint32_t *a, const uint32_t *b);

template <class T> T shuffle(site at, unsigned mask, T value, shuffle_kind kind, int by)
{
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a word at most");
    uint64_t word = 0;
    memcpy(&word, &value, sizeof value);
    word = warp_exchange(at, mask, word, kind, by);
    memcpy(&value, &word, sizeof value);
    return value;
}

/* Check one access of the running thread and say where the bytes really are. */
const void *global_read(const void *address, size_t bytes);
void *global_write(void *address, size_t bytes);
void *global_atomic(void *address, size_t bytes);
const void *shared_read(const void *address, size_t bytes);
void *shared_write(void *address, size_t bytes);
void *shared_atomic(void *address, size_t bytes);
/* Asynchronous copies of the running thread (kernels/cuda/async.h): the bytes are there when all
 * groups but the last `but` are waited for and theirs is none of these. */
void copy_send(void *to, const void *from, size_t bytes);
void copy_commit();
void copy_wait(unsigned but);
/* Shared memory of the running block, by the place of its declaration; the dynamic part. */
void *shared_static(const void *declaration, size_t bytes);
void *shared_dynamic();

struct in_global {
    static const void *read(const void *p, size_t n) { return global_read(p, n); }
    static void *write(void *p, size_t n) { return global_write(p, n); }
    static void *atomic(void *p, size_t n) { return global_atomic(p, n); }
};
struct in_shared {
    static const void *read(const void *p, size_t n) { return shared_read(p, n); }
    static void *write(void *p, size_t n) { return shared_write(p, n); }
    static void *atomic(void *p, size_t n) { return shared_atomic(p, n); }
};

template <class T, class Space> class reference {
    using value = typename std::remove_const<T>::type;
    T *at;

public:
    explicit reference(T *p) : at(p) {}
    reference(const reference &) = default;
    operator value() const
    {
        value v;
        memcpy(&v, Space::read(at, sizeof v), sizeof v);
        return v;
    }
    value operator=(value v) const
    {
        memcpy(Space::write(at, sizeof v), &v, sizeof v);
        return v;
    }
    value operator=(const reference &other) const { return *this = (value)other; }
    value operator+=(value v) const { return *this = (value)*this + v; }
    value operator*=(value v) const { return *this = (value)*this * v; }
};

template <class T, class Space> class pointer {
public:
    T *at = nullptr;

    pointer() = default;
    pointer(T *p) : at(p) {}
    template <class U, class = typename std::enable_if<std::is_convertible<U *, T *>::value>::type>
    pointer(const pointer<U, Space> &other) : at(other.at) {}
    template <class N> reference<T, Space> operator[](N i) const
    {
        return reference<T, Space>(at + (ptrdiff_t)i);
    }
    reference<T, Space> operator*() const { return reference<T, Space>(at); }
    template <class N> pointer operator+(N n) const { return pointer(at + (ptrdiff_t)n); }
    explicit operator bool() const { return at != nullptr; }
};

template <class T> using global = pointer<T, in_global>;
template <class T> using shared = pointer<T, in_shared>;

/* The same address as one of another type (reinterpret_cast). */
template <class U, class T, class Space> pointer<U, Space> as(pointer<T, Space> p)
{
    return pointer<U, Space>((U *)p.at);
}

/* Changes *p by `change` in one step that no other thread comes between; the value before. */
template <class T, class Space, class F> T atomic(pointer<T, Space> p, F change)
{
    T before, after;
    void *at = Space::atomic(p.at, sizeof(T));
    memcpy(&before, at, sizeof before);
    after = change(before);
    memcpy(at, &after, sizeof after);
    return before;
}

void grid_run(const char *kernel, index3 blocks, index3 threads, size_t shared_bytes,
              const std::function<void()> &body);
void stream_push(emu_stream *stream, std::function<void()> work);
void launch_check(const char *kernel);

/* The arguments are taken by value now; the kernel runs when the stream comes to it. */
template <class D, class... P, class... A>
void launch(const char *name, D blocks, D threads, size_t shared_bytes, emu_stream *stream,
            void (*kernel)(P...), A... arguments)
{
    index3 b = { blocks.x, blocks.y, blocks.z }, t = { threads.x, threads.y, threads.z };
    launch_check(name);
    stream_push(stream, [=] {
        grid_run(name, b, t, shared_bytes, [&] { kernel(P(arguments)...); });
    });
}

} /* namespace emu */

template <class T, class S> T atomicAdd(emu::pointer<T, S> p, T value)
{
    return emu::atomic(p, [=](T before) { return before + value; });
}
template <class T, class S> T atomicMax(emu::pointer<T, S> p, T value)
{
    return emu::atomic(p, [=](T before) { return before < value ? value : before; });
}
template <class T, class S> T atomicExch(emu::pointer<T, S> p, T value)
{
    return emu::atomic(p, [=](T) { return value; });
}
template <class T, class S> T atomicCAS(emu::pointer<T, S> p, T compare, T value)
{
    return emu::atomic(p, [=](T before) { return before == compare ? value : before; });
}

#endif
