/* The caches of atoms and of short keys.
 *
 * Direct-mapped by the bytes on the wire: a hit costs a hash, a compare and a reference, and whatever a
 * peer sends, the caches never grow. */

#ifndef PORT_SERVER_ETF_NATIVE_CACHE_H
#define PORT_SERVER_ETF_NATIVE_CACHE_H

#include "native_internal.h"

#define HIGH_BITS 0x8080808080808080ULL

/* The 1 to 8 bytes at p as one word, zeros above them. A copy of a length only known at run time is a
 * call, so where 8 bytes can be read, they are, and the surplus is masked off. */
static inline uint64_t
word_at(const unsigned char *p, const unsigned char *end, Py_ssize_t size)
{
    uint64_t word = 0;
    if (LIKELY(end - p >= 8)) {
        memcpy(&word, p, 8);
#if PY_BIG_ENDIAN
        return word >> (64 - 8 * size);
#else
        return word & (UINT64_MAX >> (64 - 8 * size));
#endif
    }
    memcpy(&word, p, (size_t)size);
    return word;
}

/* Up to 8 bytes the hash is a bijection: equal hashes of equal sizes are equal bytes. `seen` gets the bits
 * that are set in any of the bytes. */
static inline uint64_t
hash_of(const unsigned char *p, const unsigned char *end, Py_ssize_t size, uint64_t *seen)
{
    uint64_t hash = (uint64_t)size, all = 0, word;
    for (; size > 8; size -= 8, p += 8) {
        memcpy(&word, p, 8);
        all |= word;
        hash = (hash ^ word) * 0xD6E8FEB86659FD93ULL;
        hash ^= hash >> 32;
    }
    if (LIKELY(size > 0)) {
        word = word_at(p, end, size);
        all |= word;
        hash = (hash ^ word) * 0xD6E8FEB86659FD93ULL;
        hash ^= hash >> 32;
    }
    *seen = all;
    return hash;
}

static inline int
slot_is(const CacheSlot *slot, uint64_t hash, const unsigned char *p, Py_ssize_t size)
{
    return slot->hash == hash && slot->size == size && slot->value != NULL &&
           (size <= 8 || memcmp(slot->text, p, (size_t)size) == 0);
}

static void
slot_fill(CacheSlot *slot, uint64_t hash, const unsigned char *p, Py_ssize_t size, PyObject *value)
{
    PyObject *old = slot->value;
    memcpy(slot->text, p, (size_t)size);
    slot->hash = hash;
    slot->size = (uint8_t)size;
    slot->value = Py_NewRef(value);
    Py_XDECREF(old); /* last: it may run code that comes back here */
}

#endif
