/* port_server.etf.native: External Term Format <-> Python values, for the stable ABI of CPython 3.11.
 *
 * One file, read from top to bottom:
 *
 *     tags and limits      the format's numbers, the settings
 *     state                every object the module keeps; there are no C globals
 *     failures             what is wrong and where, collected on the way up to the root
 *     caches               atoms and short keys by their bytes on the wire
 *     reader               bytes -> values
 *     writer               values -> bytes
 *     entry points         decode, read_term, encode, encode_parts; for C: native.h
 *     module               what is imported once, slots by the running Py_Version
 *
 * Two rules hold everywhere. A length from the wire is compared with the bytes left before anything is
 * allocated for it, and it is read once: the buffer may be mutable. A borrowed reference does not
 * live across a call that can run Python code (a hook, a registered conversion, a __del__).
 *
 * fallback.py keeps the same contract with the same words; a test compares the two.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include "native.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define COLD __attribute__((cold, noinline))
#else
#define COLD
#endif

/* Lengths of 4 bytes are kept in a Py_ssize_t, where -1 means a failure. */
_Static_assert(sizeof(Py_ssize_t) >= 8, "32-bit systems take the fallback");

/* ---- tags and limits ---------------------------------------------------------------------------
 * https://www.erlang.org/doc/apps/erts/erl_ext_dist.html */

enum {
    VERSION = 131,
    NEW_FLOAT_EXT = 70,
    BIT_BINARY_EXT = 77,
    COMPRESSED = 80,
    NEW_PID_EXT = 88,
    NEW_PORT_EXT = 89,
    NEWER_REFERENCE_EXT = 90,
    SMALL_INTEGER_EXT = 97,
    INTEGER_EXT = 98,
    FLOAT_EXT = 99,
    ATOM_EXT = 100,
    REFERENCE_EXT = 101,
    PORT_EXT = 102,
    PID_EXT = 103,
    SMALL_TUPLE_EXT = 104,
    LARGE_TUPLE_EXT = 105,
    NIL_EXT = 106,
    STRING_EXT = 107,
    LIST_EXT = 108,
    BINARY_EXT = 109,
    SMALL_BIG_EXT = 110,
    LARGE_BIG_EXT = 111,
    NEW_FUN_EXT = 112,
    EXPORT_EXT = 113,
    NEW_REFERENCE_EXT = 114,
    SMALL_ATOM_EXT = 115,
    MAP_EXT = 116,
    ATOM_UTF8_EXT = 118,
    SMALL_ATOM_UTF8_EXT = 119,
    V4_PORT_EXT = 120,
    LOCAL_EXT = 121,
};

#define DEFAULT_MAX_DEPTH 512
/* A level of structs costs up to 400 bytes of C stack, and main has used some by then: threads have 8 MiB with
   glibc, 1 MiB in Alpine's Python. */
#define MAX_DEPTH_CEILING 2000
#define DEFAULT_MAX_BYTES 4294967295LL
#define DEFAULT_BY_REFERENCE_FROM 65536
/* From here on, a binary in `encode` is copied once, into the result, and not through the buffer. */
#define SPLICE_FROM 16384
#define MAX_ATOM_CHARACTERS 255
/* The most that is allocated at once because the last result was that large. */
#define LARGEST_GUESS (8 * 1024 * 1024)

/* ---- state ------------------------------------------------------------------------------------ */

#define CACHED_BYTES 47

typedef struct {
    PyObject *value;
    uint64_t hash;
    uint8_t size;
    char text[CACHED_BYTES];
} CacheSlot;

#define ATOM_SLOTS 1024
#define KEY_SLOTS 2048

/* Every object in the state, by one list: traverse, clear and the import code cannot disagree. */
#define STATE_OBJECTS(X)                                                                           \
    X(atom_type) X(pid_type) X(port_type) X(reference_type) X(fun_type) X(local_type)              \
    X(bitstring_type) X(improper_type) X(frozen_list_type) X(frozen_map_type) X(struct_type)       \
    X(pid_of) X(port_of) X(reference_of) X(fun_of) X(local_of)                                     \
    X(etf_error) X(decode_error) X(encode_error) X(hook_failed) X(path_of) X(show) X(key_step)     \
    X(resolve) X(name_of) X(from_struct_by_module) X(registered_builtin_subtypes)                  \
    X(atom_struct)                                                                                 \
    X(dict_new) X(int_from_bytes) X(int_to_bytes) X(int_abs) X(int_bit_length)                     \
    X(s_binary_as) X(s_floats_as) X(s_max_depth) X(s_plain_structs) X(s_head) X(s_default)         \
    X(s_max_bytes) X(s_by_reference_from) X(s_str) X(s_bytes) X(s_memoryview) X(s_list)            \
    X(s_numpy) X(s_wire) X(s_module) X(s_data) X(s_bits) X(s_items) X(s_tail) X(s_cast) X(s_B)     \
    X(s_d) X(s_little) X(s_tobytes) X(s_below)

typedef struct {
#define X(name) PyObject *name;
    STATE_OBJECTS(X)
#undef X
    PyObject *small_ints[256];
    int layouts_known;
    Py_ssize_t tuple_items_at; /* 3.14 moved them */
    Py_ssize_t last_size; /* of the last result that outgrew the stack: the next may be like it */
    CacheSlot atoms[ATOM_SLOTS];
    CacheSlot keys[KEY_SLOTS];
} State;

/* In no header of the limited API. */
static inline void
set_reference(PyObject **slot, PyObject *value /* stolen */)
{
    PyObject *old = *slot;
    *slot = value;
    Py_XDECREF(old);
}

static PyObject *
call1(PyObject *callable, PyObject *argument)
{
    return PyObject_CallFunctionObjArgs(callable, argument, NULL);
}

/* Where a list keeps its items and a float its value (a tuple tells), in every CPython from 3.11 to 3.14; `learn_layouts`
 * looks before anything relies on it. */
#define LIST_ITEMS_AT (sizeof(PyVarObject))
#define FLOAT_VALUE_AT (sizeof(PyObject))

static inline PyObject **
list_items(PyObject *list)
{
    PyObject **items;
    memcpy(&items, (char *)list + LIST_ITEMS_AT, sizeof(items));
    return items;
}

static inline PyObject **
tuple_items(const State *st, PyObject *tuple)
{
    return (PyObject **)((char *)tuple + st->tuple_items_at);
}

/* ---- failures ---------------------------------------------------------------------------------
 * A failure of the codec's own is no Python exception until it has reached the root: on the way each
 * container adds its step. Any other exception (KeyboardInterrupt, MemoryError) just passes. */

typedef struct {
    PyObject *reason;  /* str; set while a failure travels */
    PyObject *remedy;  /* str */
    PyObject *cause;   /* the exception of a hook, or NULL */
    PyObject *raised;  /* an EtfError that a hook raised; travels in place of a reason */
    PyObject *steps;   /* list, innermost first */
    Py_ssize_t offset; /* -1: none */
} Failure;

static void
failure_clear(Failure *f)
{
    Py_CLEAR(f->reason);
    Py_CLEAR(f->remedy);
    Py_CLEAR(f->cause);
    Py_CLEAR(f->raised);
    Py_CLEAR(f->steps);
}

static COLD void
failure_set_va(Failure *f, Py_ssize_t offset, const char *remedy, const char *format, va_list args)
{
    failure_clear(f);
    f->reason = PyUnicode_FromFormatV(format, args);
    f->remedy = PyUnicode_FromString(remedy);
    f->steps = PyList_New(0);
    f->offset = offset;
    if (f->reason == NULL || f->remedy == NULL || f->steps == NULL) {
        failure_clear(f); /* MemoryError travels instead */
    }
}

static COLD void
failure_set(Failure *f, Py_ssize_t offset, const char *remedy, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    failure_set_va(f, offset, remedy, format, args);
    va_end(args);
}

/* Adds one step of the path; steals `step`, which may be NULL. */
static COLD void
failure_step(Failure *f, PyObject *step)
{
    if (f->steps != NULL && step != NULL && PyList_Append(f->steps, step) < 0) {
        failure_clear(f);
    }
    Py_XDECREF(step);
}

static COLD void
failure_step_index(Failure *f, Py_ssize_t index)
{
    if (f->steps != NULL) {
        failure_step(f, PyLong_FromSsize_t(index));
    }
}

static COLD void
failure_step_key(Failure *f, PyObject *key)
{
    if (f->steps != NULL) {
        failure_step(f, Py_NewRef(key));
    }
}

static void
raise_exception(PyObject *error /* stolen */)
{
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
}

/* Turns the exception of a conversion into a failure; a BaseException that is no Exception passes. */
static COLD void
failure_from_hook(State *st, Failure *f, Py_ssize_t offset, PyObject *what)
{
    PyObject *error, *both;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return;
    }
    error = take_exception();
    both = PyObject_CallFunctionObjArgs(st->hook_failed, what, error, NULL);
    if (both == NULL || !PyTuple_Check(both) || PyTuple_Size(both) != 2) {
        Py_XDECREF(both);
        Py_DECREF(error);
        return;
    }
    failure_set(f, offset, "", "");
    if (f->reason != NULL) {
        set_reference(&f->reason, Py_NewRef(PyTuple_GetItem(both, 0)));
        set_reference(&f->remedy, Py_NewRef(PyTuple_GetItem(both, 1)));
        f->cause = Py_NewRef(error);
    }
    Py_DECREF(both);
    Py_DECREF(error);
}

/* At the root: raises what travelled. */
static COLD void
failure_raise(State *st, Failure *f, int encoding)
{
    PyObject *error;
    if (f->raised != NULL) {
        PyObject *path, *done;
        PyList_Reverse(f->steps);
        path = call1(st->path_of, f->steps);
        done = path == NULL ? NULL
                            : PyObject_CallMethodObjArgs(f->raised, st->s_below, path, NULL);
        Py_XDECREF(path);
        if (done != NULL) {
            Py_DECREF(done);
            raise_exception(Py_NewRef(f->raised));
        }
        failure_clear(f);
        return;
    }
    if (f->reason == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_SystemError, "port_server.etf.native failed without a reason");
        }
        return;
    }
    if (encoding) {
        error = PyObject_CallFunctionObjArgs(st->encode_error, f->reason, f->remedy, f->steps, NULL);
    }
    else {
        PyObject *offset = PyLong_FromSsize_t(f->offset);
        error = offset == NULL ? NULL
                               : PyObject_CallFunctionObjArgs(st->decode_error, f->reason,
                                                              f->remedy, f->steps, offset, NULL);
        Py_XDECREF(offset);
    }
    if (error != NULL) {
        if (f->cause != NULL) {
            PyException_SetCause(error, Py_NewRef(f->cause));
        }
        raise_exception(error);
    }
    failure_clear(f);
}

/* ---- caches -----------------------------------------------------------------------------------
 * Direct-mapped by the bytes on the wire: a hit costs a hash, a compare and a reference, and whatever a
 * peer sends, the caches never grow. */

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

/* ---- reader ------------------------------------------------------------------------------------ */

enum { AS_STR, AS_BYTES, AS_MEMORYVIEW };
enum { FLOATS_LIST, FLOATS_MEMORYVIEW, FLOATS_NUMPY };

typedef struct {
    State *st;
    const unsigned char *start, *p, *end;
    /* Elements announced and not yet read. Each takes a byte at least, so that all the lengths
     * together, nested as they may be, cannot make more than a few times the input be allocated. */
    Py_ssize_t owed;
    int depth, max_depth;
    int binary_as, floats_as, plain_structs;
    PyObject *buffer, *view;
    Failure failure;
} Reader;

static PyObject *read_value(Reader *r, int as_key);

static inline Py_ssize_t
left(const Reader *r)
{
    return r->end - r->p;
}

/* Notes what is wrong with the term that begins at `at`; always NULL. */
static COLD void *
fail(Reader *r, const unsigned char *at, const char *remedy, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    failure_set_va(&r->failure, at - r->start, remedy, format, args);
    va_end(args);
    return NULL;
}

static COLD void
fail_short(Reader *r, Py_ssize_t wanted)
{
    fail(r, r->p, "", "the data ends too early: %zd bytes wanted, %zd left", wanted, left(r));
}

/* Gives the next `size` bytes and moves on, or NULL. */
static inline const unsigned char *
take(Reader *r, Py_ssize_t size)
{
    const unsigned char *p = r->p;
    if (UNLIKELY(size > left(r))) {
        fail_short(r, size);
        return NULL;
    }
    r->p = p + size;
    return p;
}

static inline uint32_t
be16(const unsigned char *p)
{
    return (uint32_t)p[0] << 8 | p[1];
}

static inline uint32_t
be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t
be64(const unsigned char *p)
{
    return (uint64_t)be32(p) << 32 | be32(p + 4); /* compilers make one load and one bswap of it */
}

/* Reads a length of 1, 2 or 4 bytes; -1 on failure. */
static inline Py_ssize_t
take_length(Reader *r, int width)
{
    const unsigned char *p = take(r, width);
    if (UNLIKELY(p == NULL)) {
        return -1;
    }
    return width == 1 ? p[0] : width == 2 ? (Py_ssize_t)be16(p) : (Py_ssize_t)be32(p);
}

/* Checks that `count` elements of at least `each` bytes fit into what nobody else was promised. */
static inline int
announce(Reader *r, Py_ssize_t count, int each)
{
    Py_ssize_t free_bytes = left(r) - r->owed;
    if (UNLIKELY(count > 0 && (free_bytes < 0 || count > free_bytes / each))) {
        fail(r, r->p, "", "%zd elements are announced and %zd bytes are left for them", count,
             free_bytes < 0 ? (Py_ssize_t)0 : free_bytes);
        return -1;
    }
    r->owed += count * each;
    return 0;
}

static inline int
enter(Reader *r, const unsigned char *begin)
{
    if (UNLIKELY(r->depth >= r->max_depth)) {
        fail(r, begin, "Flatten it, or raise max_depth", "nested deeper than %d levels",
             r->max_depth);
        return -1;
    }
    r->depth++;
    return 0;
}

/* Finds the first byte that begins no well-formed UTF-8 sequence (RFC 3629); -1 if there is none. */
static Py_ssize_t
first_not_utf8(const unsigned char *p, Py_ssize_t size)
{
    Py_ssize_t i = 0;
    while (i < size) {
        unsigned char c = p[i];
        int more, k;
        unsigned char low = 0x80, high = 0xBF;
        if (c < 0x80) {
            uint64_t word;
            while (i + 8 <= size && (memcpy(&word, p + i, 8), (word & HIGH_BITS) == 0)) {
                i += 8;
            }
            if (i < size && p[i] < 0x80) {
                i++;
            }
            continue;
        }
        if (c >= 0xC2 && c <= 0xDF) {
            more = 1;
        }
        else if (c >= 0xE0 && c <= 0xEF) {
            more = 2;
            low = c == 0xE0 ? 0xA0 : 0x80;
            high = c == 0xED ? 0x9F : 0xBF;
        }
        else if (c >= 0xF0 && c <= 0xF4) {
            more = 3;
            low = c == 0xF0 ? 0x90 : 0x80;
            high = c == 0xF4 ? 0x8F : 0xBF;
        }
        else {
            return i;
        }
        for (k = 1; k <= more; k++) {
            if (i + k >= size || p[i + k] < low || p[i + k] > high) {
                return i;
            }
            low = 0x80;
            high = 0xBF;
        }
        i += more + 1;
    }
    return -1;
}

static COLD PyObject *
fail_not_utf8(Reader *r, const unsigned char *begin, const unsigned char *p, Py_ssize_t size)
{
    static const char digits[] = "0123456789abcdef";
    Py_ssize_t at = first_not_utf8(p, size);
    unsigned char byte = at < 0 ? 0 : p[at];
    return fail(r, begin,
                "Wrap it in PyPort.bytes/1, or pass binary_as: :bytes to have every binary as bytes",
                "a binary of %zd bytes is not UTF-8 (byte 0x%c%c at %zd)", size,
                digits[byte >> 4], digits[byte & 15], at);
}

static PyObject *
text_of(Reader *r, const unsigned char *begin, const unsigned char *p, Py_ssize_t size)
{
    PyObject *text;
    /* A UnicodeDecodeError copies all of its input: do not let a large one be made. */
    if (size > 4096 && first_not_utf8(p, size) >= 0) {
        return fail_not_utf8(r, begin, p, size);
    }
    text = PyUnicode_DecodeUTF8((const char *)p, size, NULL);
    if (UNLIKELY(text == NULL) && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        return fail_not_utf8(r, begin, p, size);
    }
    return text;
}

static PyObject *
key_text(Reader *r, const unsigned char *begin, const unsigned char *p, Py_ssize_t size)
{
    uint64_t seen, hash;
    CacheSlot *slot;
    PyObject *text;
    if (UNLIKELY(size > CACHED_BYTES)) {
        return text_of(r, begin, p, size);
    }
    hash = hash_of(p, r->end, size, &seen);
    slot = &r->st->keys[hash % KEY_SLOTS];
    if (LIKELY(slot_is(slot, hash, p, size))) {
        return Py_NewRef(slot->value);
    }
    text = text_of(r, begin, p, size);
    if (text != NULL) {
        slot_fill(slot, hash, p, size, text);
    }
    return text;
}

/* Bytes of their own. Of large ones it is the pages that cost, more than the copy: fewer and larger ones take half the
 * time (100 MiB: 37 ms against 86). The same bound as numpy's. */
#define LARGE_BYTES (4 << 20)
#define LARGE_PAGE ((uintptr_t)2 << 20)

static PyObject *
bytes_of(const unsigned char *p, Py_ssize_t size)
{
#ifdef MADV_HUGEPAGE
    if (UNLIKELY(size >= LARGE_BYTES)) {
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, size);
        if (bytes != NULL) {
            char *data = PyBytes_AsString(bytes);
            uintptr_t from = ((uintptr_t)data + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1);
            uintptr_t to = ((uintptr_t)data + (uintptr_t)size) & ~(LARGE_PAGE - 1);
            (void)madvise((void *)from, to - from, MADV_HUGEPAGE); /* or small ones, where there are no others */
            memcpy(data, p, (size_t)size);
        }
        return bytes;
    }
#endif
    return PyBytes_FromStringAndSize((const char *)p, size);
}

/* A binary whose bytes stand at p, right before r->p. */
static PyObject *
binary_of(Reader *r, const unsigned char *begin, const unsigned char *p, Py_ssize_t size,
          int as_key)
{
    if (LIKELY(r->binary_as == AS_STR)) {
        return as_key ? key_text(r, begin, p, size) : text_of(r, begin, p, size);
    }
    if (r->binary_as == AS_BYTES || as_key) {
        return bytes_of(p, size);
    }
    if (r->view == NULL) {
        PyObject *whole = PyMemoryView_FromObject(r->buffer);
        if (whole == NULL) {
            return NULL;
        }
        r->view = PyObject_CallMethodObjArgs(whole, r->st->s_cast, r->st->s_B, NULL);
        Py_DECREF(whole);
        if (r->view == NULL) {
            return NULL;
        }
    }
    return PySequence_GetSlice(r->view, p - r->start, p - r->start + size);
}

static PyObject *
atom_named(Reader *r, const unsigned char *begin, int tag, const unsigned char *p, Py_ssize_t size)
{
    State *st = r->st;
    uint64_t seen = 0, hash = 0;
    CacheSlot *slot = NULL;
    PyObject *name, *value;
    if (LIKELY(size <= CACHED_BYTES)) {
        hash = hash_of(p, r->end, size, &seen);
        slot = &st->atoms[hash % ATOM_SLOTS];
        if (LIKELY((seen & HIGH_BITS) == 0)) {
            /* Latin-1 and UTF-8 agree on ASCII, so that OTP 25's atoms and OTP 26's share a slot. */
            if (LIKELY(slot_is(slot, hash, p, size))) {
                return Py_NewRef(slot->value);
            }
        }
        else {
            slot = NULL;
        }
    }
    if (tag == ATOM_EXT || tag == SMALL_ATOM_EXT) {
        name = PyUnicode_DecodeLatin1((const char *)p, size, NULL);
    }
    else {
        if (first_not_utf8(p, size) >= 0) {
            return fail(r, begin, "", "an atom's name is not UTF-8");
        }
        name = PyUnicode_DecodeUTF8((const char *)p, size, NULL);
    }
    if (name == NULL) {
        return NULL;
    }
    if (PyUnicode_GetLength(name) > MAX_ATOM_CHARACTERS) {
        fail(r, begin, "", "an atom of %zd characters; 255 is the most", PyUnicode_GetLength(name));
        Py_DECREF(name);
        return NULL;
    }
    if (size == 4 && memcmp(p, "true", 4) == 0) {
        value = Py_NewRef(Py_True);
    }
    else if (size == 5 && memcmp(p, "false", 5) == 0) {
        value = Py_NewRef(Py_False);
    }
    else if (size == 3 && memcmp(p, "nil", 3) == 0) {
        value = Py_NewRef(Py_None);
    }
    else {
        value = call1(st->atom_type, name);
    }
    Py_DECREF(name);
    if (value != NULL && slot != NULL) {
        slot_fill(slot, hash, p, size, value);
    }
    return value;
}

/* Moves past an atom whose tag comes next; gives its name's bytes and tag. */
static const unsigned char *
take_atom(Reader *r, int *tag, Py_ssize_t *size)
{
    const unsigned char *begin = r->p, *p = take(r, 1);
    if (p == NULL) {
        return NULL;
    }
    *tag = p[0];
    switch (p[0]) {
    case SMALL_ATOM_EXT:
    case SMALL_ATOM_UTF8_EXT:
        *size = take_length(r, 1);
        break;
    case ATOM_EXT:
    case ATOM_UTF8_EXT:
        *size = take_length(r, 2);
        break;
    default:
        return fail(r, begin, "", "tag %d where an atom belongs", p[0]);
    }
    return *size < 0 ? NULL : take(r, *size);
}

/* Moves past an atom, checking it like a value of its own. */
static int
skip_atom(Reader *r)
{
    const unsigned char *begin = r->p, *p;
    int tag;
    Py_ssize_t size = 0;
    PyObject *atom;
    p = take_atom(r, &tag, &size);
    if (p == NULL || (atom = atom_named(r, begin, tag, p, size)) == NULL) {
        return -1;
    }
    Py_DECREF(atom);
    return 0;
}

static PyObject *
opaque_from(Reader *r, PyObject *make, const unsigned char *begin)
{
    PyObject *data, *term;
    data = PyBytes_FromStringAndSize((const char *)begin, r->p - begin);
    if (data == NULL) {
        return NULL;
    }
    term = call1(make, data);
    Py_DECREF(data);
    return term;
}

/* A pid or a port: a node, then `tail` bytes. */
static PyObject *
read_identifier(Reader *r, PyObject *make, const unsigned char *begin, Py_ssize_t tail)
{
    if (skip_atom(r) < 0 || take(r, tail) == NULL) {
        return NULL;
    }
    return opaque_from(r, make, begin);
}

static PyObject *
read_reference(Reader *r, const unsigned char *begin, int creation)
{
    Py_ssize_t words = take_length(r, 2);
    if (words < 0) {
        return NULL;
    }
    if (words < 1 || words > 5) {
        return fail(r, begin, "", "a reference of %zd words; 1 to 5 are legal", words);
    }
    return read_identifier(r, r->st->reference_of, begin, words * 4 + creation);
}

static PyObject *
read_export(Reader *r, const unsigned char *begin)
{
    const unsigned char *p;
    if (skip_atom(r) < 0 || skip_atom(r) < 0 || (p = take(r, 1)) == NULL) {
        return NULL;
    }
    if (p[0] != SMALL_INTEGER_EXT) {
        return fail(r, begin, "", "an external fun without an arity");
    }
    return take(r, 1) == NULL ? NULL : opaque_from(r, r->st->fun_of, begin);
}

static PyObject *
read_fun(Reader *r, const unsigned char *begin)
{
    Py_ssize_t size = take_length(r, 4);
    if (size < 0) {
        return NULL;
    }
    if (size < 33) {
        return fail(r, begin, "", "a fun of %zd bytes; 33 is the least", size);
    }
    return take(r, size - 4) == NULL ? NULL : opaque_from(r, r->st->fun_of, begin);
}

static PyObject *
float_of(Reader *r, const unsigned char *begin, uint64_t bits)
{
    double value;
    if (UNLIKELY((bits & 0x7FF0000000000000ULL) == 0x7FF0000000000000ULL)) {
        return fail(r, begin, "", "a float that is not finite; the BEAM has none");
    }
    memcpy(&value, &bits, 8);
    return PyFloat_FromDouble(value);
}

/* FLOAT_EXT: "%.20e" in 31 bytes. Python's own parser takes more than the BEAM's, so look first. */
static PyObject *
read_old_float(Reader *r, const unsigned char *begin)
{
    const unsigned char *raw = take(r, 31);
    char text[32];
    const char *s = text;
    int whole = 0, fraction = 0, exponent = 0, has_exponent = 0;
    double value;
    if (raw == NULL) {
        return NULL;
    }
    memcpy(text, raw, 31);
    text[31] = 0;
    s += *s == '+' || *s == '-';
    for (; *s >= '0' && *s <= '9'; s++) {
        whole = 1;
    }
    if (*s == '.') {
        for (s++; *s >= '0' && *s <= '9'; s++) {
            fraction = 1;
        }
    }
    if (*s == 'e' || *s == 'E') {
        has_exponent = 1;
        s++;
        s += *s == '+' || *s == '-';
        for (; *s >= '0' && *s <= '9'; s++) {
            exponent = 1;
        }
    }
    if (*s != 0 || !whole || !fraction || has_exponent != exponent) {
        return fail(r, begin, "", "an old float that is no number");
    }
    value = PyOS_string_to_double(text, NULL, NULL);
    if (value == -1.0 && PyErr_Occurred()) {
        return NULL;
    }
    if (value - value != 0.0) {
        return fail(r, begin, "", "a float that is not finite; the BEAM has none");
    }
    return PyFloat_FromDouble(value);
}

static PyObject *
read_big(Reader *r, const unsigned char *begin, int width)
{
    Py_ssize_t size = take_length(r, width);
    const unsigned char *p;
    int sign;
    PyObject *data, *magnitude, *value;
    if (size < 0 || (p = take(r, 1)) == NULL) {
        return NULL;
    }
    sign = p[0];
    if (sign > 1) {
        return fail(r, begin, "", "a big integer's sign byte is %d, not 0 or 1", sign);
    }
    if ((p = take(r, size)) == NULL) {
        return NULL;
    }
    if (size <= 8) {
        uint64_t small = size == 0 ? 0 : word_at(p, r->end, size);
#if PY_BIG_ENDIAN
        small = size == 0 ? 0 : __builtin_bswap64(small) >> (64 - 8 * size);
#endif
        if (!sign) {
            return PyLong_FromUnsignedLongLong(small);
        }
        if (small <= (uint64_t)INT64_MAX) {
            return PyLong_FromLongLong(-(long long)small);
        }
    }
    /* _PyLong_FromByteArray is not in the stable ABI; this is the same, one call later. */
    data = PyBytes_FromStringAndSize((const char *)p, size);
    if (data == NULL) {
        return NULL;
    }
    magnitude = PyObject_CallFunctionObjArgs(r->st->int_from_bytes, data, r->st->s_little, NULL);
    Py_DECREF(data);
    if (magnitude == NULL || !sign) {
        return magnitude;
    }
    value = PyNumber_Negative(magnitude);
    Py_DECREF(magnitude);
    return value;
}

static PyObject *
read_bits(Reader *r, const unsigned char *begin, int as_key)
{
    Py_ssize_t size = take_length(r, 4);
    const unsigned char *p;
    int used;
    PyObject *data, *count, *value = NULL;
    if (size < 0 || (p = take(r, 1)) == NULL) {
        return NULL;
    }
    used = p[0];
    if (used > 8 || (used == 0) != (size == 0)) {
        return fail(r, begin, "", "a bitstring with %d bits used of the last of %zd bytes", used,
                    size);
    }
    if ((p = take(r, size)) == NULL) {
        return NULL;
    }
    if (used == 0 || used == 8) {
        return binary_of(r, begin, p, size, as_key);
    }
    data = PyBytes_FromStringAndSize((const char *)p, size);
    count = PyLong_FromLong(used);
    if (data != NULL && count != NULL) {
        value = PyObject_CallFunctionObjArgs(r->st->bitstring_type, data, count, NULL);
    }
    Py_XDECREF(data);
    Py_XDECREF(count);
    return value;
}

/* Reads an item of a container; the common leaves without a call. */
static inline PyObject *
read_part(Reader *r, int as_key)
{
    const unsigned char *p = r->p;
    if (LIKELY(left(r) >= 9)) {
        switch (p[0]) {
        case SMALL_INTEGER_EXT:
            r->p = p + 2;
            return Py_NewRef(r->st->small_ints[p[1]]);
        case INTEGER_EXT:
            r->p = p + 5;
            return PyLong_FromLong((int32_t)be32(p + 1));
        case NEW_FLOAT_EXT:
            r->p = p + 9;
            return float_of(r, p, be64(p + 1));
        case BINARY_EXT:
            if (LIKELY(r->binary_as == AS_STR && !as_key)) {
                Py_ssize_t size = (Py_ssize_t)be32(p + 1);
                if (LIKELY(size <= left(r) - 5)) {
                    r->p = p + 5 + size;
                    return text_of(r, p, p + 5, size);
                }
            }
            break;
        default:
            break;
        }
    }
    return read_value(r, as_key);
}

static PyObject *
read_tuple(Reader *r, const unsigned char *begin, Py_ssize_t count, int as_key)
{
    PyObject *tuple;
    Py_ssize_t i;
    /* The empty tuple is shared by all, but has no places to fill. */
    int direct = r->st->layouts_known;
    if (count < 0 || enter(r, begin) < 0) {
        return NULL;
    }
    if (announce(r, count, 1) < 0 || (tuple = PyTuple_New(count)) == NULL) {
        return NULL;
    }
    for (i = 0; i < count; i++) {
        PyObject *item;
        r->owed--;
        item = read_part(r, as_key);
        if (UNLIKELY(item == NULL)) {
            failure_step_index(&r->failure, i);
            Py_DECREF(tuple);
            return NULL;
        }
        if (LIKELY(direct)) {
            tuple_items(r->st, tuple)[i] = item;
        }
        else if (PyTuple_SetItem(tuple, i, item) < 0) { /* somebody found it through gc */
            Py_DECREF(tuple);
            return NULL;
        }
    }
    r->depth--;
    return tuple;
}

static PyObject *
frozen(Reader *r, PyObject *list /* stolen */)
{
    PyObject *value = list == NULL ? NULL : call1(r->st->frozen_list_type, list);
    Py_XDECREF(list);
    return value;
}

static PyObject *
read_string(Reader *r, int as_key)
{
    Py_ssize_t size = take_length(r, 2), i;
    const unsigned char *p;
    PyObject *list;
    if (size < 0 || (p = take(r, size)) == NULL || (list = PyList_New(size)) == NULL) {
        return NULL;
    }
    for (i = 0; i < size; i++) {
        PyList_SetItem(list, i, Py_NewRef(r->st->small_ints[p[i]]));
    }
    return as_key ? frozen(r, list) : list;
}

/* Whether `count` NEW_FLOAT_EXT and a NIL_EXT may come next: a first look, at the ends. */
static inline int
may_be_floats(const Reader *r, Py_ssize_t count)
{
    const unsigned char *p = r->p;
    return count >= 1 && count <= (left(r) - 1) / 9 && p[0] == NEW_FLOAT_EXT &&
           p[(count - 1) * 9] == NEW_FLOAT_EXT && p[count * 9] == NIL_EXT;
}

/* NULL without a failure: it is an ordinary list. */
static PyObject *
read_typed_floats(Reader *r, const unsigned char *begin, Py_ssize_t count)
{
    State *st = r->st;
    const unsigned char *p = r->p;
    PyObject *raw, *view, *doubles;
    char *out;
    uint64_t bad = 0;
    Py_ssize_t i;
    raw = PyByteArray_FromStringAndSize(NULL, count * 8);
    if (raw == NULL) {
        return NULL;
    }
    out = PyByteArray_AsString(raw);
    for (i = 0; i < count && p[0] == NEW_FLOAT_EXT; i++, p += 9) {
        uint64_t bits = be64(p + 1);
        /* Adding one to an exponent of all ones carries into the sign's place. */
        bad |= (bits & 0x7FF0000000000000ULL) + 0x0010000000000000ULL;
        memcpy(out + i * 8, &bits, 8);
    }
    if (i < count) { /* not all of them are floats after all */
        Py_DECREF(raw);
        return NULL;
    }
    r->p = p + 1;
    if (bad & 0x8000000000000000ULL) {
        Py_DECREF(raw);
        return fail(r, begin, "", "a float that is not finite; the BEAM has none");
    }
    view = PyMemoryView_FromObject(raw);
    Py_DECREF(raw);
    if (view == NULL) {
        return NULL;
    }
    doubles = PyObject_CallMethodObjArgs(view, st->s_cast, st->s_d, NULL);
    Py_DECREF(view);
    if (doubles != NULL && r->floats_as == FLOATS_NUMPY) {
        PyObject *numpy = PyImport_ImportModule("numpy"), *array = NULL;
        if (numpy != NULL) {
            array = PyObject_CallMethod(numpy, "frombuffer", "O", doubles);
            Py_DECREF(numpy);
        }
        Py_DECREF(doubles);
        return array;
    }
    return doubles;
}

/* Reads `count` items into list[from:], which exist already. */
static int
read_items(Reader *r, PyObject *list, Py_ssize_t from, Py_ssize_t count, int as_key)
{
    int direct = r->st->layouts_known;
    Py_ssize_t i;
    for (i = from; i < from + count; i++) {
        PyObject *item;
        r->owed--;
        item = read_part(r, as_key);
        if (UNLIKELY(item == NULL)) {
            failure_step_index(&r->failure, i);
            return -1;
        }
        if (LIKELY(direct && i < Py_SIZE(list))) {
            list_items(list)[i] = item; /* nobody knows this list yet: the place is empty */
        }
        else if (PyList_SetItem(list, i, item) < 0) {
            return -1;
        }
    }
    return 0;
}

/* A list, read up to where its tail begins to be something else than a list. */
static PyObject *
read_list(Reader *r, const unsigned char *begin, int as_key)
{
    PyObject *list = NULL, *tail = NULL, *value;
    Py_ssize_t size = 0;
    if (enter(r, begin) < 0) {
        return NULL;
    }
    for (;;) { /* a tail that is a LIST_EXT again goes on with this list, as on the BEAM */
        Py_ssize_t count = take_length(r, 4);
        if (count < 0) {
            goto error;
        }
        if (list == NULL) {
            if (r->floats_as != FLOATS_LIST && !as_key && may_be_floats(r, count)) {
                value = read_typed_floats(r, begin, count);
                if (value != NULL || r->failure.reason != NULL || PyErr_Occurred()) {
                    r->depth--;
                    return value;
                }
            }
            if (announce(r, count, 1) < 0 || (list = PyList_New(count)) == NULL) {
                goto error;
            }
            if (read_items(r, list, 0, count, as_key) < 0) {
                goto error;
            }
        }
        else {
            /* Seen in no BEAM's output, but legal: append one by one. */
            Py_ssize_t i;
            if (announce(r, count, 1) < 0) {
                goto error;
            }
            for (i = 0; i < count; i++) {
                PyObject *item;
                int done;
                r->owed--;
                item = read_value(r, as_key);
                if (item == NULL) {
                    failure_step_index(&r->failure, size + i);
                    goto error;
                }
                done = PyList_Append(list, item);
                Py_DECREF(item);
                if (done < 0) {
                    goto error;
                }
            }
        }
        size += count;
        if (LIKELY(left(r) > 0 && r->p[0] == NIL_EXT)) {
            r->p++;
            break;
        }
        if (left(r) > 0 && r->p[0] == LIST_EXT) {
            r->p++;
            continue;
        }
        begin = r->p;
        tail = read_value(r, as_key);
        if (tail == NULL) {
            failure_step_index(&r->failure, size);
            goto error;
        }
        if (begin[0] == STRING_EXT) {
            PyObject *all = PySequence_List(tail);
            set_reference(&tail, all);
            if (tail == NULL || PyList_SetSlice(list, size, size, tail) < 0) {
                goto error;
            }
            Py_CLEAR(tail);
        }
        break;
    }
    r->depth--;
    if (tail != NULL && size == 0) {
        Py_DECREF(list);
        return tail;
    }
    if (as_key) {
        list = frozen(r, list);
        if (list == NULL) {
            Py_XDECREF(tail);
            return NULL;
        }
    }
    if (tail == NULL) {
        return list;
    }
    value = PyObject_CallFunctionObjArgs(r->st->improper_type, list, tail, NULL);
    Py_DECREF(list);
    Py_DECREF(tail);
    return value;
error:
    Py_XDECREF(list);
    Py_XDECREF(tail);
    return NULL;
}

static inline int
is_name(const unsigned char *p, Py_ssize_t size, const char *name, size_t length)
{
    return (size_t)size == length && memcmp(p, name, length) == 0;
}

/* Looks whether a map of two pairs is %PyPort.Bytes{}, which is raw whatever `binary_as` says; its
 * keys come in either order (OTP 26 sorts atoms by index). NULL without a failure: it is not. */
static PyObject *
try_port_bytes(Reader *r)
{
    const unsigned char *begin = r->p, *p, *data = NULL;
    Py_ssize_t size, data_size = 0;
    int tag, i, is_bytes = 0;
    if (left(r) < 1 || (begin[0] != SMALL_ATOM_UTF8_EXT && begin[0] != ATOM_EXT &&
                        begin[0] != SMALL_ATOM_EXT && begin[0] != ATOM_UTF8_EXT)) {
        return NULL;
    }
    for (i = 0; i < 2; i++) {
        p = take_atom(r, &tag, &size);
        if (p == NULL) {
            break;
        }
        if (is_name(p, size, "data", 4) && left(r) >= 5 && r->p[0] == BINARY_EXT) {
            data_size = (Py_ssize_t)be32(r->p + 1);
            r->p += 5;
            if ((data = take(r, data_size)) == NULL) {
                break;
            }
        }
        else if (is_name(p, size, "__struct__", 10)) {
            if ((p = take_atom(r, &tag, &size)) == NULL) {
                break;
            }
            is_bytes = is_name(p, size, "Elixir.PyPort.Bytes", 19);
        }
        else {
            break;
        }
    }
    if (is_bytes && data != NULL && i == 2) {
        return bytes_of(data, data_size);
    }
    failure_clear(&r->failure);
    PyErr_Clear();
    r->p = begin;
    return NULL;
}

static COLD PyObject *
fail_equal_keys(Reader *r, PyObject *dict, PyObject *key, const unsigned char *at)
{
    PyObject *other, *value, *one = NULL, *two = NULL;
    Py_ssize_t pos = 0;
    int same = 0;
    while (PyDict_Next(dict, &pos, &other, &value)) {
        Py_INCREF(other);
        same = PyObject_RichCompareBool(other, key, Py_EQ);
        if (same == 1) {
            one = call1(r->st->show, other);
            two = call1(r->st->show, key);
        }
        Py_DECREF(other);
        if (same != 0) {
            break;
        }
    }
    if (one != NULL && two != NULL) {
        fail(r, at, "Rename one of them, or send a list of pairs",
             "two keys of one map are equal in Python: %U and %U", one, two);
    }
    else if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_RuntimeError, "a key that is not equal to itself");
    }
    Py_XDECREF(one);
    Py_XDECREF(two);
    return NULL;
}

static PyObject *
struct_from(Reader *r, PyObject *dict /* stolen */, const unsigned char *begin, int as_key)
{
    State *st = r->st;
    PyObject *module, *convert, *value = NULL;
    module = Py_XNewRef(PyDict_GetItemWithError(dict, st->atom_struct));
    if (module == NULL || (PyObject *)Py_TYPE(module) != st->atom_type) {
        Py_XDECREF(module);
        if (as_key && !PyErr_Occurred()) {
            value = call1(st->frozen_map_type, dict);
            Py_DECREF(dict);
            return value;
        }
        return dict;
    }
    if (PyDict_DelItem(dict, st->atom_struct) < 0) {
        goto done;
    }
    convert = r->plain_structs ? NULL
                               : PyDict_GetItemWithError(st->from_struct_by_module, module);
    if (convert == NULL) {
        if (PyErr_Occurred()) {
            goto done;
        }
        /* Struct(module, dict), without its Python __init__ */
        value = call1(st->dict_new, st->struct_type);
        if (value != NULL && (PyDict_Update(value, dict) < 0 ||
                              PyObject_GenericSetAttr(value, st->s_module, module) < 0)) {
            Py_CLEAR(value);
        }
        goto done;
    }
    Py_INCREF(convert);
    value = call1(convert, dict);
    Py_DECREF(convert);
    if (value == NULL) {
        failure_from_hook(st, &r->failure, begin - r->start, module);
    }
    else if (as_key && Py_TYPE(value) == &PySet_Type) {
        set_reference(&value, PyFrozenSet_New(value));
    }
done:
    Py_DECREF(module);
    Py_DECREF(dict);
    return value;
}

static PyObject *
read_map(Reader *r, const unsigned char *begin, int as_key)
{
    State *st = r->st;
    Py_ssize_t count, i;
    PyObject *dict, *key, *value;
    const unsigned char *first;
    int is_struct = 0, again = 0;
    if (enter(r, begin) < 0 || (count = take_length(r, 4)) < 0) {
        return NULL;
    }
    if (count == 0 && !as_key) {
        r->depth--;
        return PyDict_New();
    }
    if (count == 2 && !r->plain_structs) {
        value = try_port_bytes(r);
        if (value != NULL || PyErr_Occurred()) {
            r->depth--;
            return value;
        }
    }
    first = r->p;
again:
    if (announce(r, count, 2) < 0 || (dict = PyDict_New()) == NULL) {
        return NULL;
    }
    for (i = 0; i < count; i++) {
        const unsigned char *at = r->p;
        r->owed--;
        key = NULL;
        if (LIKELY(left(r) > 5 && at[0] == BINARY_EXT && r->binary_as == AS_STR)) {
            Py_ssize_t size = (Py_ssize_t)be32(at + 1);
            if (LIKELY(size <= left(r) - 5)) {
                r->p = at + 5 + size;
                key = key_text(r, at, at + 5, size);
            }
            else {
                r->p = at + 5;
                fail_short(r, size);
            }
        }
        else {
            key = read_value(r, 1);
        }
        if (UNLIKELY(key == NULL)) {
            failure_step_key(&r->failure, st->key_step);
            goto error;
        }
        r->owed--;
        value = read_part(r, as_key);
        if (UNLIKELY(value == NULL)) {
            failure_step_key(&r->failure, key);
            Py_DECREF(key);
            goto error;
        }
        if (UNLIKELY(PyDict_SetItem(dict, key, value) < 0)) {
            if (PyErr_ExceptionMatches(PyExc_RecursionError)) {
                PyErr_Clear();
                fail(r, at, "Flatten it", "a key is nested deeper than Python can compare");
            }
            else if (PyErr_ExceptionMatches(PyExc_TypeError)) {
                PyObject *name = NULL;
                PyErr_Clear();
                name = call1(st->name_of, key);
                if (name != NULL) {
                    fail(r, at, "", "a %U cannot be a key in Python", name);
                    Py_DECREF(name);
                }
            }
            Py_DECREF(key);
            Py_DECREF(value);
            goto error;
        }
        Py_DECREF(value);
        if (UNLIKELY(again) && PyDict_Size(dict) != i + 1) {
            fail_equal_keys(r, dict, key, at);
            Py_DECREF(key);
            goto error;
        }
        is_struct |= key == st->atom_struct;
        Py_DECREF(key);
    }
    if (UNLIKELY(PyDict_Size(dict) != count) && !again) {
        Py_DECREF(dict);
        r->p = first; /* once more, slowly, to see which two keys met */
        again = 1;
        goto again;
    }
    r->depth--;
    if (UNLIKELY(is_struct)) {
        return struct_from(r, dict, begin, as_key);
    }
    if (UNLIKELY(as_key)) {
        value = call1(st->frozen_map_type, dict);
        Py_DECREF(dict);
        return value;
    }
    return dict;
error:
    Py_DECREF(dict);
    return NULL;
}

static COLD PyObject *
read_local(Reader *r, const unsigned char *begin)
{
    if (r->depth > 0) {
        return fail(r, begin, "", "a local term inside another term");
    }
    r->p = r->end; /* what follows has no announced end; it can only be all there is */
    return opaque_from(r, r->st->local_of, begin);
}

static PyObject *
read_value(Reader *r, int as_key)
{
    const unsigned char *begin = r->p, *p;
    Py_ssize_t size;
    if (UNLIKELY(begin >= r->end)) {
        fail_short(r, 1);
        return NULL;
    }
    r->p++;
    switch (begin[0]) {
    case SMALL_INTEGER_EXT:
        p = take(r, 1);
        return p == NULL ? NULL : Py_NewRef(r->st->small_ints[p[0]]);
    case INTEGER_EXT:
        p = take(r, 4);
        return p == NULL ? NULL : PyLong_FromLong((int32_t)be32(p));
    case NEW_FLOAT_EXT:
        p = take(r, 8);
        return p == NULL ? NULL : float_of(r, begin, be64(p));
    case BINARY_EXT:
        size = take_length(r, 4);
        p = size < 0 ? NULL : take(r, size);
        return p == NULL ? NULL : binary_of(r, begin, p, size, as_key);
    case SMALL_ATOM_EXT:
    case SMALL_ATOM_UTF8_EXT:
        size = take_length(r, 1);
        p = size < 0 ? NULL : take(r, size);
        return p == NULL ? NULL : atom_named(r, begin, begin[0], p, size);
    case ATOM_EXT:
    case ATOM_UTF8_EXT:
        size = take_length(r, 2);
        p = size < 0 ? NULL : take(r, size);
        return p == NULL ? NULL : atom_named(r, begin, begin[0], p, size);
    case SMALL_TUPLE_EXT:
        return read_tuple(r, begin, take_length(r, 1), as_key);
    case LARGE_TUPLE_EXT:
        return read_tuple(r, begin, take_length(r, 4), as_key);
    case NIL_EXT:
        return as_key ? frozen(r, PyList_New(0)) : PyList_New(0);
    case STRING_EXT:
        return read_string(r, as_key);
    case LIST_EXT:
        return read_list(r, begin, as_key);
    case MAP_EXT:
        return read_map(r, begin, as_key);
    case SMALL_BIG_EXT:
        return read_big(r, begin, 1);
    case LARGE_BIG_EXT:
        return read_big(r, begin, 4);
    case BIT_BINARY_EXT:
        return read_bits(r, begin, as_key);
    case FLOAT_EXT:
        return read_old_float(r, begin);
    case NEW_PID_EXT:
        return read_identifier(r, r->st->pid_of, begin, 12);
    case PID_EXT:
        return read_identifier(r, r->st->pid_of, begin, 9);
    case NEW_PORT_EXT:
        return read_identifier(r, r->st->port_of, begin, 8);
    case PORT_EXT:
        return read_identifier(r, r->st->port_of, begin, 5);
    case V4_PORT_EXT:
        return read_identifier(r, r->st->port_of, begin, 12);
    case REFERENCE_EXT:
        return read_identifier(r, r->st->reference_of, begin, 5);
    case NEW_REFERENCE_EXT:
        return read_reference(r, begin, 1);
    case NEWER_REFERENCE_EXT:
        return read_reference(r, begin, 4);
    case EXPORT_EXT:
        return read_export(r, begin);
    case NEW_FUN_EXT:
        return read_fun(r, begin);
    case LOCAL_EXT:
        return read_local(r, begin);
    case COMPRESSED:
        return fail(r, begin, "Leave out the :compressed option of term_to_binary",
                    "compressed terms are refused");
    default:
        return fail(r, begin, "", "tag %d is not one of the External Term Format's", begin[0]);
    }
}

/* ---- writer ------------------------------------------------------------------------------------ */

/* Bytes that are not in the buffer: they stand before the buffer's byte `at`. */
typedef struct {
    PyObject *owner; /* bytes or str, held; for encode_parts also a memoryview */
    const char *data;
    Py_ssize_t size, at;
} Splice;

typedef struct {
    State *st;
    char *buffer;
    Py_ssize_t size, capacity;
    char *heap; /* the buffer, once it no longer fits the stack */
    long long max_bytes;
    long long spliced; /* bytes in splices */
    Splice *splices;
    Py_ssize_t splice_count, splice_capacity;
    Py_ssize_t by_reference_from; /* -1: a result in one piece */
    int in_key;                   /* keys are compared by their bytes: no splices inside them */
    int depth, max_depth;
    Py_ssize_t hooks; /* calls that ran other people's code so far */
    PyObject *hook;   /* default=, or NULL */
    Failure failure;
} Writer;

static int write_value(Writer *w, PyObject *value);

/* Notes what is wrong with the value being written; always -1. */
static COLD int
wfail(Writer *w, const char *remedy, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    failure_set_va(&w->failure, -1, remedy, format, args);
    va_end(args);
    return -1;
}

static COLD int
fail_too_large(Writer *w)
{
    return wfail(w, "Send less at once, or raise the limit", "the term is larger than %lld bytes",
                 w->max_bytes);
}

static COLD int
grow(Writer *w, Py_ssize_t more)
{
    Py_ssize_t wanted;
    char *heap;
    if (more > PY_SSIZE_T_MAX / 4 - w->size || w->spliced + w->size + more > w->max_bytes) {
        return fail_too_large(w);
    }
    wanted = (w->size + more) + (w->size + more) / 2 + 512;
    if (w->heap == NULL && wanted < w->st->last_size) {
        wanted = w->st->last_size; /* pages that are not written to cost nothing */
    }
    heap = PyMem_Realloc(w->heap, (size_t)wanted);
    if (heap == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (w->heap == NULL) {
        memcpy(heap, w->buffer, (size_t)w->size);
    }
    w->heap = w->buffer = heap;
    w->capacity = wanted;
    return 0;
}

static inline int
reserve(Writer *w, Py_ssize_t more)
{
    return LIKELY(w->capacity - w->size >= more) ? 0 : grow(w, more);
}

static inline void
put_be32(char *out, uint32_t value)
{
    out[0] = (char)(value >> 24);
    out[1] = (char)(value >> 16);
    out[2] = (char)(value >> 8);
    out[3] = (char)value;
}

static inline void
put_be64(char *out, uint64_t value)
{
    unsigned char bytes[8];
    int i;
    for (i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(value >> (56 - 8 * i));
    }
    memcpy(out, bytes, 8);
}

static inline int
put(Writer *w, const char *data, Py_ssize_t size)
{
    if (reserve(w, size) < 0) {
        return -1;
    }
    memcpy(w->buffer + w->size, data, (size_t)size);
    w->size += size;
    return 0;
}

/* memcpy, without the call for the few bytes that names and short texts have. */
static inline void
copy_short(char *to, const char *from, Py_ssize_t size)
{
    if (size >= 8) {
        if (UNLIKELY(size > 16)) {
            memcpy(to, from, (size_t)size);
            return;
        }
        memcpy(to, from, 8);
        memcpy(to + size - 8, from + size - 8, 8);
    }
    else if (size >= 4) {
        memcpy(to, from, 4);
        memcpy(to + size - 4, from + size - 4, 4);
    }
    else if (size > 0) {
        to[0] = from[0];
        to[size >> 1] = from[size >> 1];
        to[size - 1] = from[size - 1];
    }
}

static inline int
put_header(Writer *w, int tag, Py_ssize_t count)
{
    if (reserve(w, 5) < 0) {
        return -1;
    }
    w->buffer[w->size] = (char)tag;
    put_be32(w->buffer + w->size + 1, (uint32_t)count);
    w->size += 5;
    return 0;
}

/* Notes bytes that stay where they are until the result is put together; takes a new reference. */
static int
splice(Writer *w, PyObject *owner, const char *data, Py_ssize_t size)
{
    if (w->spliced + w->size + size > w->max_bytes) {
        return fail_too_large(w);
    }
    if (w->splice_count == w->splice_capacity) {
        Py_ssize_t wanted = w->splice_capacity * 2 + 8;
        Splice *splices = PyMem_Realloc(w->splices, (size_t)wanted * sizeof(Splice));
        if (splices == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        w->splices = splices;
        w->splice_capacity = wanted;
    }
    w->splices[w->splice_count++] = (Splice){Py_NewRef(owner), data, size, w->size};
    w->spliced += size;
    return 0;
}

static COLD int
fail_depth(Writer *w)
{
    return wfail(w, "Flatten it, raise max_depth, or look for a value that contains itself",
                 "nested deeper than %d levels", w->max_depth);
}

/* Turns the exception of a conversion of `value` into a failure. */
static COLD int
fail_conversion(Writer *w, PyObject *value)
{
    PyObject *error, *name;
    if (!PyErr_ExceptionMatches(PyExc_Exception)) {
        return -1;
    }
    error = take_exception();
    name = call1(w->st->name_of, value);
    if (name == NULL) {
        Py_DECREF(error);
        return -1;
    }
    raise_exception(error);
    failure_from_hook(w->st, &w->failure, -1, name);
    Py_DECREF(name);
    return -1;
}

static inline int
write_int(Writer *w, PyObject *value)
{
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    char *out;
    if (reserve(w, 16) < 0) {
        return -1;
    }
    out = w->buffer + w->size;
    if (LIKELY(!overflow)) {
        uint64_t magnitude;
        int size = 0;
        if (UNLIKELY(number == -1 && PyErr_Occurred())) {
            return -1;
        }
        if (number >= 0 && number < 256) {
            out[0] = SMALL_INTEGER_EXT;
            out[1] = (char)number;
            w->size += 2;
            return 0;
        }
        if (number >= INT32_MIN && number <= INT32_MAX) {
            out[0] = INTEGER_EXT;
            put_be32(out + 1, (uint32_t)number);
            w->size += 5;
            return 0;
        }
        magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
        out[0] = SMALL_BIG_EXT;
        out[2] = number < 0;
        while (size < 8) { /* all eight; the next term overwrites those above the highest */
            out[3 + size] = (char)(magnitude >> (8 * size));
            size++;
        }
        size = 4 + (magnitude >> 32 != 0) + (magnitude >> 40 != 0) + (magnitude >> 48 != 0) +
               (magnitude >> 56 != 0);
        out[1] = (char)size;
        w->size += 3 + size;
        return 0;
    }
    return -2; /* larger than 64 bits */
}

static int
write_big(Writer *w, PyObject *value, int negative)
{
    State *st = w->st;
    PyObject *magnitude, *bits, *size = NULL, *data = NULL;
    Py_ssize_t bytes;
    int result = -1;
    magnitude = call1(st->int_abs, value); /* the base's: a subclass may override it */
    bits = magnitude == NULL ? NULL : call1(st->int_bit_length, magnitude);
    if (bits == NULL) {
        goto done;
    }
    bytes = PyLong_AsSsize_t(bits);
    if (bytes == -1 && PyErr_Occurred()) {
        goto done;
    }
    bytes = bytes / 8 + (bytes % 8 != 0);
    if (w->size + w->spliced + bytes > w->max_bytes || bytes > (Py_ssize_t)UINT32_MAX) {
        fail_too_large(w);
        goto done;
    }
    size = PyLong_FromSsize_t(bytes);
    data = size == NULL ? NULL
                        : PyObject_CallFunctionObjArgs(st->int_to_bytes, magnitude, size,
                                                       st->s_little, NULL);
    if (data == NULL || reserve(w, 6) < 0) {
        goto done;
    }
    if (bytes < 256) {
        w->buffer[w->size++] = SMALL_BIG_EXT;
        w->buffer[w->size++] = (char)bytes;
    }
    else {
        put_header(w, LARGE_BIG_EXT, bytes);
    }
    w->buffer[w->size++] = (char)negative;
    result = put(w, PyBytes_AsString(data), bytes);
done:
    Py_XDECREF(magnitude);
    Py_XDECREF(bits);
    Py_XDECREF(size);
    Py_XDECREF(data);
    return result;
}

static int
write_any_int(Writer *w, PyObject *value)
{
    int result = write_int(w, value);
    if (UNLIKELY(result == -2)) {
        int overflow;
        PyLong_AsLongLongAndOverflow(value, &overflow);
        return write_big(w, value, overflow < 0);
    }
    return result;
}

static inline int
put_short_atom(Writer *w, const char *name, Py_ssize_t size)
{
    if (reserve(w, size + 3) < 0) {
        return -1;
    }
    if (LIKELY(size < 256)) {
        w->buffer[w->size++] = SMALL_ATOM_UTF8_EXT;
    }
    else {
        w->buffer[w->size++] = ATOM_UTF8_EXT;
        w->buffer[w->size++] = (char)(size >> 8);
    }
    w->buffer[w->size++] = (char)size;
    copy_short(w->buffer + w->size, name, size);
    w->size += size;
    return 0;
}

#define PUT_ATOM(w, name) put_short_atom(w, name, (Py_ssize_t)sizeof(name) - 1)

static COLD int
fail_surrogate(Writer *w)
{
    PyObject *error, *start;
    Py_ssize_t at = -1;
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        return -1;
    }
    error = take_exception();
    start = PyObject_GetAttrString(error, "start");
    Py_DECREF(error);
    if (start != NULL) {
        at = PyLong_AsSsize_t(start);
        Py_DECREF(start);
    }
    PyErr_Clear();
    return wfail(w, "Send bytes instead, e.g. text.encode(\"utf-8\", \"surrogateescape\")",
                 "a str with a lone surrogate at %zd has no UTF-8 form", at);
}

static int
write_atom(Writer *w, PyObject *name)
{
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(name, &size);
    if (UNLIKELY(text == NULL)) {
        return fail_surrogate(w);
    }
    if (UNLIKELY(size > MAX_ATOM_CHARACTERS && PyUnicode_GetLength(name) > MAX_ATOM_CHARACTERS)) {
        return wfail(w, "", "an atom of %zd characters; 255 is the most",
                     PyUnicode_GetLength(name));
    }
    return put_short_atom(w, text, size);
}

static inline int
write_double(Writer *w, double value)
{
    uint64_t bits;
    char *out;
    if (UNLIKELY(value - value != 0.0)) {
        /* A NaN or an infinity makes the BEAM reject the whole message; these are Nx's words. */
        return value != value  ? PUT_ATOM(w, "nan")
               : value > 0.0   ? PUT_ATOM(w, "infinity")
                               : PUT_ATOM(w, "neg_infinity");
    }
    if (reserve(w, 9) < 0) {
        return -1;
    }
    memcpy(&bits, &value, 8);
    out = w->buffer + w->size;
    out[0] = NEW_FLOAT_EXT;
    put_be64(out + 1, bits);
    w->size += 9;
    return 0;
}

static COLD int
fail_binary_too_large(Writer *w, Py_ssize_t size)
{
    return wfail(w, "", "a binary of %zd bytes; the format ends at 4 GiB", size);
}

static inline int
write_str(Writer *w, PyObject *value, int is_key)
{
    Py_ssize_t size;
    char *out;
    const char *text = PyUnicode_AsUTF8AndSize(value, &size);
    if (UNLIKELY(text == NULL)) {
        return fail_surrogate(w);
    }
    if (UNLIKELY(size >= SPLICE_FROM)) {
        if (size > (Py_ssize_t)UINT32_MAX) {
            return fail_binary_too_large(w, size);
        }
        if (w->by_reference_from < 0 && !is_key && !w->in_key) {
            return put_header(w, BINARY_EXT, size) < 0 ? -1 : splice(w, value, text, size);
        }
    }
    if (reserve(w, size + 5) < 0) {
        return -1;
    }
    out = w->buffer + w->size;
    out[0] = BINARY_EXT;
    put_be32(out + 1, (uint32_t)size);
    copy_short(out + 5, text, size);
    w->size += size + 5;
    return 0;
}

static int
write_bytes(Writer *w, PyObject *value)
{
    char *data;
    Py_ssize_t size, threshold;
    if (PyBytes_AsStringAndSize(value, &data, &size) < 0) {
        return -1;
    }
    if (UNLIKELY(size > (Py_ssize_t)UINT32_MAX)) {
        return fail_binary_too_large(w, size);
    }
    if (put_header(w, BINARY_EXT, size) < 0) {
        return -1;
    }
    threshold = w->by_reference_from < 0 ? SPLICE_FROM : w->by_reference_from;
    if (size >= threshold && size > 0 && !w->in_key) {
        PyObject *plain;
        int result;
        if (LIKELY(w->by_reference_from < 0 || Py_TYPE(value) == &PyBytes_Type)) {
            return splice(w, value, data, size);
        }
        /* As a part, a subclass would answer len() and the buffer protocol for itself. */
        plain = PyBytes_FromStringAndSize(data, size);
        result = plain == NULL ? -1 : splice(w, plain, NULL, size);
        Py_XDECREF(plain);
        return result;
    }
    return put(w, data, size);
}

/* bytearray and memoryview */
static int
write_buffer(Writer *w, PyObject *value)
{
    State *st = w->st;
    Py_buffer view;
    int result = -1;
    if (PyByteArray_Check(value) && Py_TYPE(value) != &PyByteArray_Type) {
        /* From 3.12 on a subclass may have a __buffer__ of its own: code, and other bytes. */
        Py_ssize_t size = PyByteArray_Size(value);
        if (size > (Py_ssize_t)UINT32_MAX) {
            return fail_binary_too_large(w, size);
        }
        return put_header(w, BINARY_EXT, size) < 0
                   ? -1
                   : put(w, PyByteArray_AsString(value), size);
    }
    if (PyObject_GetBuffer(value, &view, PyBUF_FULL_RO) < 0) { /* a released memoryview */
        return fail_conversion(w, value);
    }
    if (view.len > (Py_ssize_t)UINT32_MAX) {
        fail_binary_too_large(w, view.len);
    }
    else if (!PyBuffer_IsContiguous(&view, 'C')) {
        PyObject *copy = PyObject_CallMethodObjArgs(value, st->s_tobytes, NULL);
        if (copy != NULL && put_header(w, BINARY_EXT, view.len) == 0) {
            result = put(w, PyBytes_AsString(copy), view.len);
        }
        Py_XDECREF(copy);
    }
    else if (put_header(w, BINARY_EXT, view.len) < 0) {
        result = -1;
    }
    else if (w->by_reference_from >= 0 && view.len >= w->by_reference_from && view.len > 0 &&
             !w->in_key) {
        PyObject *whole = PyMemoryView_FromObject(value), *flat = NULL;
        w->hooks++; /* on 3.11 a new object may collect garbage, and that runs code */
        if (whole != NULL) {
            flat = PyObject_CallMethodObjArgs(whole, st->s_cast, st->s_B, NULL);
            Py_DECREF(whole);
        }
        if (flat != NULL) {
            result = splice(w, flat, NULL, view.len);
            Py_DECREF(flat);
        }
    }
    else {
        result = put(w, view.buf, view.len); /* at once: the next hook may change or free it */
    }
    PyBuffer_Release(&view);
    return result;
}

static COLD int
fail_changed(Writer *w, const char *what)
{
    PyErr_Clear();
    return wfail(w, "", "a %s changed while it was being encoded", what);
}

/* Writes one of the values that run no code, so that nobody has to be held meanwhile. -3: it is none. */
static inline int
write_leaf(Writer *w, PyObject *item)
{
    PyTypeObject *type = Py_TYPE(item);
    if (type == &PyUnicode_Type) {
        return write_str(w, item, 0);
    }
    if (type == &PyLong_Type) {
        int result = write_int(w, item);
        return LIKELY(result != -2) ? result : write_any_int(w, item);
    }
    if (type == &PyFloat_Type) {
        return write_double(w, PyFloat_AsDouble(item));
    }
    if (item == Py_None) {
        return PUT_ATOM(w, "nil");
    }
    if (item == Py_True) {
        return PUT_ATOM(w, "true");
    }
    if (item == Py_False) {
        return PUT_ATOM(w, "false");
    }
    return -3;
}

/* Writes a borrowed item of a container, which may be gone as soon as a hook has run. */
static inline int
write_part(Writer *w, PyObject *item)
{
    int result = write_leaf(w, item);
    if (result == -3) {
        Py_INCREF(item);
        result = write_value(w, item);
        Py_DECREF(item);
    }
    return result;
}

typedef PyObject *(*GetItem)(PyObject *, Py_ssize_t);

/* Writes the floats from index `i` on, up to the first item that is none, or is not finite; gives that
 * item's index, or -1. A list of floats is common and long: everything stays in registers, and where
 * the layouts are known (see `learn_layouts`) nothing is called for an item. */
static Py_ssize_t
write_floats(Writer *w, PyObject *sequence, GetItem get, Py_ssize_t i, Py_ssize_t count)
{
    char *out = w->buffer + w->size, *last = w->buffer + w->capacity - 9;
    PyObject **items = w->st->layouts_known && get == PyList_GetItem ? list_items(sequence) : NULL;
    if (items != NULL && count > Py_SIZE(sequence)) {
        count = Py_SIZE(sequence); /* a hook made it shorter; in here, none runs */
    }
    for (; i < count; i++) {
        PyObject *item = items != NULL ? items[i] : get(sequence, i);
        uint64_t bits;
        if (UNLIKELY(item == NULL || Py_TYPE(item) != &PyFloat_Type)) {
            PyErr_Clear();
            break;
        }
        if (items != NULL) {
            memcpy(&bits, (char *)item + FLOAT_VALUE_AT, 8);
        }
        else {
            double value = PyFloat_AsDouble(item);
            memcpy(&bits, &value, 8);
        }
        if (UNLIKELY((bits & 0x7FF0000000000000ULL) == 0x7FF0000000000000ULL)) {
            break;
        }
        if (UNLIKELY(out > last)) {
            w->size = out - w->buffer;
            if (reserve(w, 9 * (count - i < 1000 ? count - i : 1000)) < 0) {
                return -1;
            }
            out = w->buffer + w->size;
            last = w->buffer + w->capacity - 9;
        }
        out[0] = NEW_FLOAT_EXT;
        put_be64(out + 1, bits);
        out += 9;
    }
    w->size = out - w->buffer;
    return i;
}

/* The items of a list or a tuple, subclasses included; whatever they override is not asked. */
static int
write_items(Writer *w, PyObject *sequence, int is_list, Py_ssize_t count)
{
    GetItem get = is_list ? PyList_GetItem : PyTuple_GetItem;
    int direct = is_list && w->st->layouts_known;
    Py_ssize_t i;
    for (i = 0; i < count; i++) {
        PyObject *item = !direct                ? get(sequence, i)
                         : i < Py_SIZE(sequence) ? list_items(sequence)[i]
                                                 : NULL;
        int result;
        if (UNLIKELY(item == NULL)) {
            return fail_changed(w, "list");
        }
        if (Py_TYPE(item) == &PyFloat_Type) {
            Py_ssize_t next = write_floats(w, sequence, get, i, count);
            if (next < 0) {
                failure_step_index(&w->failure, i);
                return -1;
            }
            if (next > i) {
                i = next - 1;
                continue;
            }
        }
        result = write_part(w, item);
        if (UNLIKELY(result < 0)) {
            failure_step_index(&w->failure, i);
            return -1;
        }
    }
    if (UNLIKELY(is_list && PyList_Size(sequence) != count)) {
        return fail_changed(w, "list");
    }
    return 0;
}

static int
write_list(Writer *w, PyObject *sequence, int is_list)
{
    Py_ssize_t count = is_list ? PyList_Size(sequence) : PyTuple_Size(sequence);
    if (UNLIKELY(w->depth >= w->max_depth)) {
        return fail_depth(w);
    }
    w->depth++;
    if (count > 0) {
        if (UNLIKELY(count > (Py_ssize_t)UINT32_MAX)) {
            return fail_too_large(w);
        }
        if (put_header(w, LIST_EXT, count) < 0 || write_items(w, sequence, is_list, count) < 0) {
            return -1;
        }
    }
    if (reserve(w, 1) < 0) {
        return -1;
    }
    w->buffer[w->size++] = NIL_EXT;
    w->depth--;
    return 0;
}

static int
write_tuple(Writer *w, PyObject *tuple)
{
    Py_ssize_t count = PyTuple_Size(tuple);
    if (UNLIKELY(w->depth >= w->max_depth)) {
        return fail_depth(w);
    }
    w->depth++;
    if (LIKELY(count < 256)) {
        if (reserve(w, 2) < 0) {
            return -1;
        }
        w->buffer[w->size++] = SMALL_TUPLE_EXT;
        w->buffer[w->size++] = (char)count;
    }
    else if (count > (Py_ssize_t)UINT32_MAX) {
        return fail_too_large(w);
    }
    else if (put_header(w, LARGE_TUPLE_EXT, count) < 0) {
        return -1;
    }
    if (write_items(w, tuple, 0, count) < 0) {
        return -1;
    }
    w->depth--;
    return 0;
}

/* Which keys can become equal on the BEAM, though they differ in Python? Not within one of these kinds, and
 * only in some mixtures of them. */
enum { KEY_STR = 1, KEY_INT = 2, KEY_BYTES = 4, KEY_CONSTANT = 8, KEY_FLOAT = 16, KEY_ATOM = 32, KEY_OTHER = 64 };

static inline int
kind_of_key(State *st, PyObject *key)
{
    PyTypeObject *type = Py_TYPE(key);
    if (type == &PyUnicode_Type) {
        return KEY_STR;
    }
    if ((PyObject *)type == st->atom_type) {
        return KEY_ATOM;
    }
    if (type == &PyLong_Type) {
        return KEY_INT;
    }
    if (type == &PyBytes_Type) {
        return KEY_BYTES;
    }
    if (type == &PyBool_Type || key == Py_None) {
        return KEY_CONSTANT;
    }
    if (type == &PyFloat_Type) {
        double value = PyFloat_AsDouble(key);
        return value - value == 0.0 ? KEY_FLOAT : KEY_OTHER;
    }
    return KEY_OTHER;
}

static inline int
kinds_may_meet(int kinds)
{
    return (kinds & KEY_OTHER) || (kinds & (KEY_STR | KEY_BYTES)) == (KEY_STR | KEY_BYTES) ||
           (kinds & (KEY_CONSTANT | KEY_ATOM)) == (KEY_CONSTANT | KEY_ATOM);
}

/* Adds one key by its bytes; fails if they are there already. */
static int
seen_add(Writer *w, PyObject *seen, PyObject *key, const char *data, Py_ssize_t size)
{
    PyObject *written = PyBytes_FromStringAndSize(data, size), *before;
    int result = -1;
    if (written == NULL) {
        return -1;
    }
    before = PyDict_GetItemWithError(seen, written);
    if (before != NULL) {
        PyObject *one, *two;
        Py_INCREF(before);
        one = call1(w->st->show, before);
        two = call1(w->st->show, key);
        if (one != NULL && two != NULL) {
            wfail(w, "Rename one of them, or send a list of pairs",
                  "two keys of one map become equal on the BEAM: %U and %U", one, two);
        }
        Py_XDECREF(one);
        Py_XDECREF(two);
        Py_DECREF(before);
    }
    else if (!PyErr_Occurred()) {
        result = PyDict_SetItem(seen, written, key);
    }
    Py_DECREF(written);
    return result;
}

/* What tells one sequence of keys from another, without holding them. */
static inline uintptr_t
trail_of(uintptr_t trail, PyObject *key)
{
    return trail * 31 + ((uintptr_t)key >> 3);
}

/* Writes the first `count` keys of a dict once more, to be compared. A hook may have rebuilt the dict
 * meanwhile; then these are others than those that were written. */
static int
seen_add_earlier(Writer *w, PyObject *seen, PyObject *dict, Py_ssize_t count, int is_struct,
                 uintptr_t trail)
{
    PyObject *key, *value;
    Py_ssize_t pos = 0, begin = w->size;
    uintptr_t now = 0;
    Py_ssize_t left_over = count;
    while (left_over > 0 && PyDict_Next(dict, &pos, &key, &value)) {
        now = trail_of(now, key);
        left_over--;
    }
    if (left_over > 0 || now != trail) {
        return fail_changed(w, "dict");
    }
    pos = 0;
    while (count-- > 0 && PyDict_Next(dict, &pos, &key, &value)) {
        int result;
        Py_INCREF(key);
        w->in_key++;
        result = is_struct && Py_TYPE(key) == &PyUnicode_Type ? write_atom(w, key)
                                                              : write_value(w, key);
        w->in_key--;
        if (result == 0) {
            result = seen_add(w, seen, key, w->buffer + begin, w->size - begin);
        }
        w->size = begin;
        Py_DECREF(key);
        if (result < 0) {
            return -1;
        }
    }
    return 0;
}

static int
write_map(Writer *w, PyObject *dict, PyObject *module)
{
    State *st = w->st;
    Py_ssize_t count = PyDict_Size(dict), done = 0, pos = 0, hooks = w->hooks;
    PyObject *key, *value, *seen = NULL;
    int kinds = module == NULL ? 0 : KEY_ATOM, result = -1;
    uintptr_t trail = 0; /* of the keys written so far */
    if (UNLIKELY(w->depth >= w->max_depth)) {
        return fail_depth(w);
    }
    w->depth++;
    if (UNLIKELY(count >= (Py_ssize_t)UINT32_MAX)) {
        return fail_too_large(w);
    }
    if (put_header(w, MAP_EXT, count + (module != NULL)) < 0) {
        return -1;
    }
    if (module != NULL && (PUT_ATOM(w, "__struct__") < 0 || write_atom(w, module) < 0)) {
        return -1;
    }
    while (PyDict_Next(dict, &pos, &key, &value)) {
        int outcome;
        Py_ssize_t begin = w->size;
        if (UNLIKELY(done == count)) {
            fail_changed(w, "dict");
            goto finally;
        }
        if (LIKELY(Py_TYPE(key) == &PyUnicode_Type && module == NULL && seen == NULL) &&
            LIKELY((kinds & ~(KEY_STR | KEY_INT)) == 0 && w->hooks == hooks)) {
            kinds |= KEY_STR;
            Py_INCREF(key); /* even a leaf that fails may collect garbage (3.11), and that runs code */
            outcome = write_str(w, key, 1);
            if (LIKELY(outcome == 0) && (outcome = write_leaf(w, value)) == -3) {
                Py_INCREF(value);
                outcome = write_value(w, value);
                Py_DECREF(value);
            }
            if (UNLIKELY(outcome < 0)) {
                failure_step_key(&w->failure, key);
                Py_DECREF(key);
                goto finally;
            }
            trail = trail_of(trail, key);
            Py_DECREF(key);
            done++;
            continue;
        }
        Py_INCREF(key);
        Py_INCREF(value);
        if (Py_TYPE(key) == &PyUnicode_Type && module == NULL) {
            kinds |= KEY_STR;
            outcome = write_str(w, key, 1);
        }
        else if (Py_TYPE(key) == &PyUnicode_Type) {
            outcome = write_atom(w, key); /* a struct's keys are atoms */
            if (outcome == 0 && (kinds |= KEY_ATOM, PyUnicode_CompareWithASCIIString(key, "__struct__") == 0)) {
                kinds |= KEY_OTHER;
            }
        }
        else {
            kinds |= kind_of_key(st, key);
            if (module != NULL && (PyObject *)Py_TYPE(key) == st->atom_type && key == st->atom_struct) {
                kinds |= KEY_OTHER;
            }
            w->in_key++;
            outcome = write_value(w, key);
            w->in_key--;
        }
        if (outcome == 0 && UNLIKELY((kinds_may_meet(kinds) && count + (module != NULL) > 1) ||
                                     w->hooks != hooks)) {
            if (seen == NULL) {
                /* Hooks may rebuild the table under the iteration and show a key twice. */
                seen = PyDict_New();
                if (seen == NULL) {
                    outcome = -1;
                }
                else {
                    if (module != NULL) {
                        Py_ssize_t start = w->size;
                        outcome = PUT_ATOM(w, "__struct__");
                        if (outcome == 0) {
                            outcome = seen_add(w, seen, st->atom_struct, w->buffer + start,
                                               w->size - start);
                        }
                        w->size = start;
                    }
                    if (outcome == 0) {
                        outcome = seen_add_earlier(w, seen, dict, done, module != NULL, trail);
                    }
                }
            }
            if (outcome == 0) {
                outcome = seen_add(w, seen, key, w->buffer + begin, w->size - begin);
            }
        }
        if (outcome == 0) {
            outcome = write_part(w, value);
        }
        trail = trail_of(trail, key);
        done++;
        if (UNLIKELY(outcome < 0)) {
            failure_step_key(&w->failure, key);
            Py_DECREF(key);
            Py_DECREF(value);
            goto finally;
        }
        Py_DECREF(key);
        Py_DECREF(value);
    }
    if (UNLIKELY(done != count || PyDict_Size(dict) != count)) {
        fail_changed(w, "dict");
        goto finally;
    }
    w->depth--;
    result = 0;
finally:
    Py_XDECREF(seen);
    return result;
}

static int
write_opaque(Writer *w, PyObject *term)
{
    PyObject *data = PyObject_GetAttr(term, w->st->s_wire);
    int result = -1;
    if (data != NULL && PyBytes_Check(data)) {
        result = put(w, PyBytes_AsString(data), PyBytes_Size(data));
    }
    else if (data != NULL) {
        wfail(w, "", "an opaque term without its bytes");
    }
    Py_XDECREF(data);
    return result;
}

static int
write_bits(Writer *w, PyObject *term)
{
    State *st = w->st;
    PyObject *data = PyObject_GetAttr(term, st->s_data), *bits = PyObject_GetAttr(term, st->s_bits);
    int result = -1;
    long used = bits == NULL ? -1 : PyLong_AsLong(bits);
    if (data != NULL && !PyErr_Occurred()) {
        Py_ssize_t size = PyBytes_Check(data) ? PyBytes_Size(data) : 0;
        if (size < 1 || size > (Py_ssize_t)UINT32_MAX || used < 1 || used > 7) {
            wfail(w, "", "a BitString that was changed into something else");
        }
        else if (put_header(w, BIT_BINARY_EXT, size) == 0 && reserve(w, 1) == 0) {
            w->buffer[w->size++] = (char)used;
            result = put(w, PyBytes_AsString(data), size);
        }
    }
    Py_XDECREF(data);
    Py_XDECREF(bits);
    return result;
}

static int
write_improper(Writer *w, PyObject *term)
{
    State *st = w->st;
    PyObject *items = PyObject_GetAttr(term, st->s_items);
    PyObject *tail = PyObject_GetAttr(term, st->s_tail);
    int result = -1, is_list = items != NULL && PyList_Check(items);
    Py_ssize_t count;
    if (items == NULL || tail == NULL) {
        goto done;
    }
    if (w->depth >= w->max_depth) {
        fail_depth(w);
        goto done;
    }
    count = is_list ? PyList_Size(items) : PyTuple_Check(items) ? PyTuple_Size(items) : 0;
    if (count < 1 || count > (Py_ssize_t)UINT32_MAX) {
        wfail(w, "", "an ImproperList that was changed into something else");
        goto done;
    }
    w->depth++;
    if (put_header(w, LIST_EXT, count) == 0 && write_items(w, items, is_list, count) == 0) {
        result = write_value(w, tail);
        if (result < 0) {
            failure_step_index(&w->failure, count);
        }
    }
    w->depth--;
done:
    Py_XDECREF(items);
    Py_XDECREF(tail);
    return result;
}

static int
write_struct(Writer *w, PyObject *term)
{
    PyObject *module = PyObject_GetAttr(term, w->st->s_module);
    int result = -1;
    if (module != NULL && PyUnicode_Check(module)) {
        result = write_map(w, term, module);
    }
    else if (module != NULL) {
        wfail(w, "", "a Struct whose module is no atom");
    }
    Py_XDECREF(module);
    return result;
}

/* A subclass of a built-in type goes as its base, whatever it overrides. -2: it is none. */
static int
write_base(Writer *w, PyObject *value)
{
    State *st = w->st;
    if (PyUnicode_Check(value)) {
        return write_str(w, value, 0);
    }
    if (PyLong_Check(value)) {
        return write_any_int(w, value);
    }
    if (PyFloat_Check(value)) {
        return write_double(w, PyFloat_AsDouble(value));
    }
    if (PyBytes_Check(value)) {
        return write_bytes(w, value);
    }
    if (PyByteArray_Check(value)) {
        return write_buffer(w, value);
    }
    if (PyList_Check(value)) {
        return write_list(w, value, 1);
    }
    if (PyTuple_Check(value)) {
        return PyObject_TypeCheck(value, (PyTypeObject *)st->frozen_list_type)
                   ? write_list(w, value, 0)
                   : write_tuple(w, value);
    }
    if (PyDict_Check(value)) {
        return PyObject_TypeCheck(value, (PyTypeObject *)st->struct_type)
                   ? write_struct(w, value)
                   : write_map(w, value, NULL);
    }
    return -2;
}

static inline int
has_base(PyObject *value)
{
    return PyUnicode_Check(value) || PyLong_Check(value) || PyFloat_Check(value) ||
           PyBytes_Check(value) || PyByteArray_Check(value) || PyList_Check(value) ||
           PyTuple_Check(value) || PyDict_Check(value);
}

static int
write_mapped(Writer *w, PyObject *mapped /* stolen */)
{
    int result;
    if (w->depth >= w->max_depth) {
        Py_DECREF(mapped);
        return fail_depth(w);
    }
    w->depth++;
    result = write_value(w, mapped);
    w->depth--;
    Py_DECREF(mapped);
    return result;
}

/* What is no built-in type itself: enums, registered types, dataclasses, subclasses, the rest. */
static int
write_other(Writer *w, PyObject *value)
{
    State *st = w->st;
    PyObject *mapped, *name;
    int result;
    /* A metaclass may mean an enum, and a registered subtype of a built-in goes first. */
    if (has_base(value) && Py_TYPE((PyObject *)Py_TYPE(value)) == &PyType_Type &&
        PySet_Size(st->registered_builtin_subtypes) == 0) {
        return write_base(w, value);
    }
    w->hooks++;
    mapped = call1(st->resolve, value);
    if (mapped == NULL) {
        return fail_conversion(w, value);
    }
    if (mapped != Py_NotImplemented) {
        return write_mapped(w, mapped);
    }
    Py_DECREF(mapped);
    result = write_base(w, value);
    if (result != -2) {
        return result;
    }
    if (w->hook == NULL) {
        name = call1(st->name_of, value);
        if (name != NULL) {
            wfail(w, "Convert it, or register its type with port_server.etf.register",
                  "a value of type %U has no term", name);
            Py_DECREF(name);
        }
        return -1;
    }
    mapped = call1(w->hook, value);
    if (mapped == NULL) {
        if (PyErr_ExceptionMatches(st->etf_error)) {
            PyObject *error = take_exception();
            failure_set(&w->failure, -1, "", "");
            if (w->failure.steps == NULL) {
                Py_DECREF(error);
                return -1;
            }
            w->failure.raised = error;
        }
        return -1;
    }
    return write_mapped(w, mapped);
}

static int
write_value(Writer *w, PyObject *value)
{
    State *st = w->st;
    PyTypeObject *type = Py_TYPE(value);
    int result = write_leaf(w, value);
    if (result != -3) {
        return result;
    }
    if (type == &PyDict_Type) {
        return write_map(w, value, NULL);
    }
    if (type == &PyList_Type) {
        return write_list(w, value, 1);
    }
    if (type == &PyTuple_Type) {
        return write_tuple(w, value);
    }
    if ((PyObject *)type == st->atom_type) {
        return write_atom(w, value);
    }
    if (type == &PyBytes_Type) {
        return write_bytes(w, value);
    }
    if (type == &PyByteArray_Type || type == &PyMemoryView_Type) {
        return write_buffer(w, value);
    }
    if ((PyObject *)type == st->struct_type) {
        return write_struct(w, value);
    }
    if ((PyObject *)type == st->frozen_list_type) {
        return write_list(w, value, 0);
    }
    if ((PyObject *)type == st->frozen_map_type) {
        return write_map(w, value, NULL);
    }
    if ((PyObject *)type == st->pid_type || (PyObject *)type == st->reference_type ||
        (PyObject *)type == st->port_type || (PyObject *)type == st->fun_type) {
        return write_opaque(w, value);
    }
    if ((PyObject *)type == st->bitstring_type) {
        return write_bits(w, value);
    }
    if ((PyObject *)type == st->improper_type) {
        return write_improper(w, value);
    }
    if ((PyObject *)type == st->local_type) {
        return w->depth > 0 ? wfail(w, "Send it alone", "a local term inside another term")
                            : write_opaque(w, value);
    }
    return write_other(w, value);
}

static void
writer_free(Writer *w)
{
    Py_ssize_t i;
    if (w->heap != NULL) {
        w->st->last_size = w->size < LARGEST_GUESS ? w->size + w->size / 16 : 0;
    }
    for (i = 0; i < w->splice_count; i++) {
        Py_DECREF(w->splices[i].owner);
    }
    PyMem_Free(w->splices);
    PyMem_Free(w->heap);
}

/* ---- entry points ------------------------------------------------------------------------------ */

static State *
state_of(PyObject *module)
{
    State *st = PyModule_GetState(module);
    if (UNLIKELY(st == NULL || st->atom_type == NULL)) {
        PyErr_SetString(PyExc_RuntimeError, "port_server.etf.native has been unloaded");
        return NULL;
    }
    return st;
}

static inline int
is_word(PyObject *word, PyObject *wanted)
{
    return word == wanted || (PyUnicode_Check(word) && PyUnicode_Compare(word, wanted) == 0);
}

static int
max_depth_of(PyObject *value, int *out)
{
    long depth = PyLong_AsLong(value);
    if (depth == -1 && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        return -1;
    }
    if (depth < 0 || depth > MAX_DEPTH_CEILING) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "max_depth is 0 to %d, not %S", MAX_DEPTH_CEILING, value);
        return -1;
    }
    *out = (int)depth;
    return 0;
}

static COLD int
unknown_option(const char *function, PyObject *name)
{
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
    return -1;
}

static int
reader_option(Reader *r, const char *function, PyObject *name, PyObject *value)
{
    State *st = r->st;
    if (is_word(name, st->s_binary_as)) {
        r->binary_as = is_word(value, st->s_str)          ? AS_STR
                       : is_word(value, st->s_bytes)      ? AS_BYTES
                       : is_word(value, st->s_memoryview) ? AS_MEMORYVIEW
                                                          : -1;
        if (r->binary_as < 0) {
            PyErr_Format(PyExc_ValueError,
                         "binary_as is \"str\", \"bytes\" or \"memoryview\", not %R", value);
            return -1;
        }
        return 0;
    }
    if (is_word(name, st->s_floats_as)) {
        r->floats_as = is_word(value, st->s_list)         ? FLOATS_LIST
                       : is_word(value, st->s_memoryview) ? FLOATS_MEMORYVIEW
                       : is_word(value, st->s_numpy)      ? FLOATS_NUMPY
                                                          : -1;
        if (r->floats_as < 0) {
            PyErr_Format(PyExc_ValueError,
                         "floats_as is \"list\", \"memoryview\" or \"numpy\", not %R", value);
            return -1;
        }
        return 0;
    }
    if (is_word(name, st->s_max_depth)) {
        return max_depth_of(value, &r->max_depth);
    }
    if (is_word(name, st->s_plain_structs)) {
        r->plain_structs = PyObject_IsTrue(value);
        return r->plain_structs < 0 ? -1 : 0;
    }
    return unknown_option(function, name);
}

static PyObject *
read_buffer(State *st, const char *function, PyObject *buffer, Py_ssize_t offset, int whole,
            int max_depth, PyObject *const *options, PyObject *names, Py_ssize_t *end)
{
    Reader r;
    Py_buffer view;
    Py_ssize_t size, i, count = names == NULL ? 0 : PyTuple_Size(names);
    PyObject *value = NULL;
    int exported = 0;
    r.st = st;
    r.owed = 0;
    r.depth = 0;
    r.max_depth = max_depth;
    r.binary_as = AS_STR;
    r.floats_as = FLOATS_LIST;
    r.plain_structs = 0;
    r.buffer = buffer;
    r.view = NULL;
    r.failure = (Failure){NULL, NULL, NULL, NULL, NULL, -1};
    for (i = 0; i < count; i++) {
        if (reader_option(&r, function, PyTuple_GetItem(names, i), options[i]) < 0) {
            return NULL;
        }
    }
    if (LIKELY(Py_TYPE(buffer) == &PyBytes_Type)) {
        r.start = (const unsigned char *)PyBytes_AsString(buffer);
        size = PyBytes_Size(buffer);
    }
    else {
        if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0) {
            return NULL;
        }
        exported = 1;
        r.start = view.buf;
        size = view.len;
    }
    if (offset < 0 || offset > size) {
        PyErr_Format(PyExc_ValueError, "offset %zd is outside the buffer of %zd bytes", offset,
                     size);
        goto done;
    }
    r.p = r.start + offset;
    r.end = r.start + size;
    if (whole) {
        const unsigned char *p = take(&r, 1);
        if (p == NULL || p[0] != VERSION) {
            if (p != NULL) {
                fail(&r, p, "", "the first byte is %d, not the version byte 131", p[0]);
            }
            failure_raise(st, &r.failure, 0);
            goto done;
        }
    }
    value = read_value(&r, 0);
    if (LIKELY(value != NULL) && whole && UNLIKELY(r.p != r.end)) {
        fail(&r, r.p, "", "%zd bytes follow the term", left(&r));
        Py_CLEAR(value);
    }
    if (UNLIKELY(value == NULL)) {
        failure_raise(st, &r.failure, 0);
    }
    *end = r.p - r.start;
done:
    if (exported) {
        PyBuffer_Release(&view);
    }
    Py_XDECREF(r.view);
    return value;
}

PyDoc_STRVAR(decode_doc,
             "decode($module, buffer, /, *, binary_as='str', floats_as='list', max_depth=512,\n"
             "       plain_structs=False)\n"
             "--\n\n"
             "Read one whole term: the version byte 131 first, nothing after it.\n"
             "\n"
             "Args:\n"
             "    buffer: any bytes-like object.\n"
             "    binary_as: what every binary becomes: \"str\" (it must be UTF-8), \"bytes\" or \"memoryview\",\n"
             "        which lies in `buffer` and is not copied.\n"
             "    floats_as: what a list of nothing but floats becomes: \"list\", \"memoryview\" (of doubles)\n"
             "        or \"numpy\" (an array).\n"
             "    max_depth: how many containers may be inside each other, at most 2000.\n"
             "    plain_structs: whether every struct stays a `Struct`.\n"
             "\n"
             "Raises:\n"
             "    DecodeError: it is no term, or one without a Python value; says where in it.");

static PyObject *
decode(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    State *st = state_of(module);
    Py_ssize_t end;
    if (st == NULL) {
        return NULL;
    }
    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError, "decode() takes 1 positional argument but %zd were given",
                     nargs);
        return NULL;
    }
    return read_buffer(st, "decode", args[0], 0, 1, DEFAULT_MAX_DEPTH, args + nargs, names, &end);
}

PyDoc_STRVAR(read_term_doc,
             "read_term($module, buffer, offset, /, *, binary_as='str', floats_as='list',\n"
             "          max_depth=512, plain_structs=False)\n"
             "--\n\n"
             "Read one term without a version byte at `offset`; returns it and where it ended.\n"
             "\n"
             "Args:\n"
             "    buffer: any bytes-like object.\n"
             "    offset: where in it the term begins, in bytes.\n"
             "    binary_as: what every binary becomes: \"str\" (it must be UTF-8), \"bytes\" or \"memoryview\",\n"
             "        which lies in `buffer` and is not copied.\n"
             "    floats_as: what a list of nothing but floats becomes: \"list\", \"memoryview\" (of doubles)\n"
             "        or \"numpy\" (an array).\n"
             "    max_depth: how many containers may be inside each other, at most 2000.\n"
             "    plain_structs: whether every struct stays a `Struct`.\n"
             "\n"
             "Raises:\n"
             "    DecodeError: it is no term, or one without a Python value; says where in it.");

static PyObject *
read_term(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    State *st = state_of(module);
    Py_ssize_t offset, end = 0;
    PyObject *value, *position, *both;
    if (st == NULL) {
        return NULL;
    }
    if (nargs != 2) {
        PyErr_Format(PyExc_TypeError,
                     "read_term() takes 2 positional arguments but %zd were given", nargs);
        return NULL;
    }
    offset = PyLong_AsSsize_t(args[1]);
    if (offset == -1 && PyErr_Occurred()) {
        return NULL;
    }
    value = read_buffer(st, "read_term", args[0], offset, 0, DEFAULT_MAX_DEPTH, args + nargs, names,
                        &end);
    if (value == NULL) {
        return NULL;
    }
    position = PyLong_FromSsize_t(end);
    both = position == NULL ? NULL : PyTuple_New(2);
    if (both == NULL) {
        Py_XDECREF(position);
        Py_DECREF(value);
        return NULL;
    }
    PyTuple_SetItem(both, 0, value);
    PyTuple_SetItem(both, 1, position);
    return both;
}

static int
writer_option(Writer *w, const char *function, PyObject *name, PyObject *value, PyObject **head)
{
    State *st = w->st;
    if (is_word(name, st->s_head)) {
        *head = value;
        return 0;
    }
    if (is_word(name, st->s_default)) {
        w->hook = value == Py_None ? NULL : value;
        return 0;
    }
    if (is_word(name, st->s_max_depth)) {
        return max_depth_of(value, &w->max_depth);
    }
    if (is_word(name, st->s_max_bytes)) {
        w->max_bytes = PyLong_AsLongLong(value);
        return w->max_bytes == -1 && PyErr_Occurred() ? -1 : 0;
    }
    if (w->by_reference_from >= 0 && is_word(name, st->s_by_reference_from)) {
        w->by_reference_from = PyLong_AsSsize_t(value);
        if (w->by_reference_from < 0) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_ValueError, "by_reference_from is not negative");
            }
            return -1;
        }
        return 0;
    }
    return unknown_option(function, name);
}

/* Writes a value behind what w holds; the caller frees w whatever comes back. */
static int
write_behind(Writer *w, PyObject *value)
{
    if (LIKELY(write_value(w, value) == 0)) {
        if (LIKELY(w->size + w->spliced <= w->max_bytes)) {
            return 0;
        }
        fail_too_large(w);
    }
    failure_raise(w->st, &w->failure, 1);
    return -1;
}

/* Writes head and value into w; the caller frees w whatever comes back. */
static int
write_whole(Writer *w, const char *function, PyObject *const *args, Py_ssize_t nargs,
            PyObject *names)
{
    Py_ssize_t i, count = names == NULL ? 0 : PyTuple_Size(names);
    PyObject *head = NULL;
    int result;
    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes 1 positional argument but %zd were given",
                     function, nargs);
        return -1;
    }
    for (i = 0; i < count; i++) {
        if (writer_option(w, function, PyTuple_GetItem(names, i), args[nargs + i], &head) < 0) {
            return -1;
        }
    }
    if (head == NULL) {
        w->buffer[w->size++] = (char)VERSION;
    }
    else if (Py_TYPE(head) == &PyBytes_Type) {
        result = put(w, PyBytes_AsString(head), PyBytes_Size(head));
        if (result < 0) {
            goto failed;
        }
    }
    else {
        Py_buffer view;
        if (PyObject_GetBuffer(head, &view, PyBUF_SIMPLE) < 0) {
            return -1;
        }
        result = put(w, view.buf, view.len);
        PyBuffer_Release(&view);
        if (result < 0) {
            goto failed;
        }
    }
    return write_behind(w, args[0]);
failed:
    failure_raise(w->st, &w->failure, 1);
    return -1;
}

#define STACK_BUFFER 1024 /* a reply to a small request needs no allocation but its result */

#define WRITER(name, state, reference_from)                                                        \
    char stack[STACK_BUFFER];                                                                      \
    Writer name;                                                                                   \
    memset(&name, 0, sizeof(name));                                                                \
    name.st = state;                                                                               \
    name.buffer = stack;                                                                           \
    name.capacity = STACK_BUFFER;                                                                  \
    name.max_bytes = DEFAULT_MAX_BYTES;                                                            \
    name.max_depth = DEFAULT_MAX_DEPTH;                                                            \
    name.by_reference_from = reference_from

PyDoc_STRVAR(encode_doc,
             "encode($module, value, /, *, head=b'\\x83', default=None, max_depth=512,\n"
             "       max_bytes=4294967295)\n"
             "--\n\n"
             "Write one value behind `head`.\n"
             "\n"
             "Args:\n"
             "    value: what is to be written.\n"
             "    head: the bytes that stand before the term: its version byte, or a whole envelope.\n"
             "    default: called with a value that has no term; returns one that has.\n"
             "    max_depth: how many containers may be inside each other, at most 2000.\n"
             "    max_bytes: how many bytes the result may have, `head` included.\n"
             "\n"
             "Raises:\n"
             "    EncodeError: there is no term for it, or it is too deep or too large; says where in it.");

static PyObject *
encode(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    State *st = state_of(module);
    PyObject *result = NULL;
    if (st == NULL) {
        return NULL;
    }
    WRITER(w, st, -1);
    if (write_whole(&w, "encode", args, nargs, names) == 0) {
        result = PyBytes_FromStringAndSize(w.splice_count == 0 ? w.buffer : NULL,
                                           w.size + (Py_ssize_t)w.spliced);
        if (result != NULL && w.splice_count > 0) {
            char *out = PyBytes_AsString(result);
            Py_ssize_t i, from = 0;
            for (i = 0; i < w.splice_count; i++) {
                const Splice *s = &w.splices[i];
                memcpy(out, w.buffer + from, (size_t)(s->at - from));
                out += s->at - from;
                memcpy(out, s->data, (size_t)s->size);
                out += s->size;
                from = s->at;
            }
            memcpy(out, w.buffer + from, (size_t)(w.size - from));
        }
    }
    writer_free(&w);
    return result;
}

PyDoc_STRVAR(encode_parts_doc,
             "encode_parts($module, value, /, *, head=b'\\x83', default=None, max_depth=512,\n"
             "             max_bytes=4294967295, by_reference_from=65536)\n"
             "--\n\n"
             "Write one value behind `head` in parts for os.writev, large bytes-likes by reference.\n"
             "\n"
             "Args:\n"
             "    value: what is to be written.\n"
             "    head: the bytes that stand before the term: its version byte, or a whole envelope.\n"
             "    default: called with a value that has no term; returns one that has.\n"
             "    max_depth: how many containers may be inside each other, at most 2000.\n"
             "    max_bytes: how many bytes the result may have, `head` included.\n"
             "    by_reference_from: how many bytes a bytes-like must have to be a part of its own, which is\n"
             "        not copied: write it before code runs that may change it.\n"
             "\n"
             "Raises:\n"
             "    EncodeError: there is no term for it, or it is too deep or too large; says where in it.");

static int
append_stolen(PyObject *list, PyObject *item)
{
    int result = item == NULL ? -1 : PyList_Append(list, item);
    Py_XDECREF(item);
    return result;
}

/* What w holds, as a list of bytes and of what was not copied. */
static PyObject *
parts_of(Writer *w)
{
    Py_ssize_t i, from = 0;
    PyObject *parts = PyList_New(0);
    if (parts == NULL) {
        return NULL;
    }
    for (i = 0; i < w->splice_count; i++) {
        const Splice *s = &w->splices[i];
        if (s->at > from &&
            append_stolen(parts, PyBytes_FromStringAndSize(w->buffer + from, s->at - from)) < 0) {
            goto failed;
        }
        if (PyList_Append(parts, s->owner) < 0) {
            goto failed;
        }
        from = s->at;
    }
    if (w->size > from &&
        append_stolen(parts, PyBytes_FromStringAndSize(w->buffer + from, w->size - from)) < 0) {
        goto failed;
    }
    return parts;
failed:
    Py_DECREF(parts);
    return NULL;
}

static PyObject *
encode_parts(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    State *st = state_of(module);
    PyObject *parts = NULL;
    if (st == NULL) {
        return NULL;
    }
    WRITER(w, st, DEFAULT_BY_REFERENCE_FROM);
    if (write_whole(&w, "encode_parts", args, nargs, names) == 0) {
        parts = parts_of(&w);
    }
    writer_free(&w);
    return parts;
}

/* ---- for other C: see native.h ----------------------------------------------------------------- */

static PyObject *
c_read(PyObject *module, PyObject *buffer, Py_ssize_t offset, int max_depth, Py_ssize_t *end)
{
    State *st = state_of(module);
    if (st == NULL) {
        return NULL;
    }
    return read_buffer(st, "read_term", buffer, offset, 0, max_depth, NULL, NULL, end);
}

static PyObject *
c_write(PyObject *module, PyObject *value, const NativeWriting *how, char *room, Py_ssize_t *size)
{
    State *st = state_of(module);
    PyObject *parts = NULL;
    if (st == NULL) {
        return NULL;
    }
    WRITER(w, st, DEFAULT_BY_REFERENCE_FROM);
    w.hook = how->hook;
    w.max_bytes = how->max_bytes;
    w.max_depth = how->max_depth;
    if (put(&w, how->head, how->head_bytes) < 0) {
        failure_raise(st, &w.failure, 1);
    }
    else if (write_behind(&w, value) == 0) {
        if (LIKELY(w.splice_count == 0 && w.size <= how->room_bytes)) {
            memcpy(room, w.buffer, (size_t)w.size);
            *size = w.size;
            parts = Py_NewRef(Py_None);
        }
        else {
            parts = parts_of(&w);
        }
    }
    writer_free(&w);
    return parts;
}

static const NativeApi c_api = {c_read, c_write};

/* ---- module ------------------------------------------------------------------------------------ */

static int
import_into(PyObject **slot, const char *module, const char *name)
{
    PyObject *imported = PyImport_ImportModule(module);
    if (imported == NULL) {
        return -1;
    }
    *slot = PyObject_GetAttrString(imported, name);
    Py_DECREF(imported);
    return *slot == NULL ? -1 : 0;
}

static int
attribute_into(PyObject **slot, PyObject *of, const char *name)
{
    *slot = PyObject_GetAttrString(of, name);
    return *slot == NULL ? -1 : 0;
}

/* The stable ABI gives a container's items and a float's value by calls only, and for a list of floats those calls
 * are half of the time. Their places have not moved in decades, so: on the versions this was tested
 * with, after a look at real objects, they are used directly; on any later one by the calls. */
static int
learn_layouts(State *st)
{
    double value = 0;
    PyObject *number = PyFloat_FromDouble(1.5), *list = PyList_New(2), *tuple = NULL, *size = NULL;
    int result = -1;
    if (number == NULL || list == NULL) {
        goto done;
    }
    PyList_SetItem(list, 0, Py_NewRef(number));
    PyList_SetItem(list, 1, Py_NewRef(Py_None));
    tuple = PyList_AsTuple(list);
    /* A tuple's basic size is where its items begin. */
    size = PyObject_GetAttrString((PyObject *)&PyTuple_Type, "__basicsize__");
    st->tuple_items_at = size == NULL ? -1 : PyLong_AsSsize_t(size);
    if (tuple == NULL || st->tuple_items_at < 0) {
        goto done;
    }
#ifndef Py_GIL_DISABLED
    if (Py_Version < 0x030F0000 && Py_SIZE(list) == 2 &&
        (st->tuple_items_at == 3 * (Py_ssize_t)sizeof(void *) ||
         st->tuple_items_at == 4 * (Py_ssize_t)sizeof(void *))) {
        PyObject **items = list_items(list), **same = tuple_items(st, tuple);
        memcpy(&value, (char *)number + FLOAT_VALUE_AT, sizeof(value));
        st->layouts_known = value == 1.5 && items[0] == number && items[1] == Py_None &&
                            same[0] == number && same[1] == Py_None;
    }
#endif
    result = 0;
done:
    Py_XDECREF(number);
    Py_XDECREF(list);
    Py_XDECREF(tuple);
    Py_XDECREF(size);
    return result;
}

static int
module_exec(PyObject *module)
{
    State *st = PyModule_GetState(module);
    int i;
    static const char terms[] = "port_server.etf.terms", errors[] = "port_server.etf.errors";
    static const char mapping[] = "port_server.etf.mapping", structs[] = "port_server.etf.structs";
#define IMPORT(slot, from, name)                                                                   \
    if (import_into(&st->slot, from, name) < 0) {                                                  \
        return -1;                                                                                 \
    }
#define ATTRIBUTE(slot, of, name)                                                                  \
    if (attribute_into(&st->slot, of, name) < 0) {                                                 \
        return -1;                                                                                 \
    }
#define WORD(name)                                                                                 \
    if ((st->s_##name = PyUnicode_InternFromString(#name)) == NULL) {                              \
        return -1;                                                                                 \
    }
    IMPORT(pid_type, terms, "Pid")
    IMPORT(port_type, terms, "Port")
    IMPORT(reference_type, terms, "Reference")
    IMPORT(fun_type, terms, "Fun")
    IMPORT(local_type, terms, "LocalTerm")
    IMPORT(bitstring_type, terms, "BitString")
    IMPORT(improper_type, terms, "ImproperList")
    IMPORT(frozen_list_type, terms, "FrozenList")
    IMPORT(frozen_map_type, terms, "FrozenMap")
    IMPORT(struct_type, terms, "Struct")
    ATTRIBUTE(pid_of, st->pid_type, "from_wire")
    ATTRIBUTE(port_of, st->port_type, "from_wire")
    ATTRIBUTE(reference_of, st->reference_type, "from_wire")
    ATTRIBUTE(fun_of, st->fun_type, "from_wire")
    ATTRIBUTE(local_of, st->local_type, "from_wire")
    IMPORT(etf_error, errors, "EtfError")
    IMPORT(decode_error, errors, "decode_error")
    IMPORT(encode_error, errors, "encode_error")
    IMPORT(hook_failed, errors, "hook_failed")
    IMPORT(path_of, errors, "path_of")
    IMPORT(show, errors, "show")
    IMPORT(key_step, errors, "KEY")
    IMPORT(resolve, mapping, "resolve")
    IMPORT(name_of, mapping, "name_of")
    IMPORT(from_struct_by_module, structs, "from_struct_by_module")
    IMPORT(registered_builtin_subtypes, structs, "registered_builtin_subtypes")
    ATTRIBUTE(dict_new, (PyObject *)&PyDict_Type, "__new__")
    ATTRIBUTE(int_from_bytes, (PyObject *)&PyLong_Type, "from_bytes")
    ATTRIBUTE(int_to_bytes, (PyObject *)&PyLong_Type, "to_bytes")
    ATTRIBUTE(int_abs, (PyObject *)&PyLong_Type, "__abs__")
    ATTRIBUTE(int_bit_length, (PyObject *)&PyLong_Type, "bit_length")
    WORD(binary_as)
    WORD(floats_as)
    WORD(max_depth)
    WORD(plain_structs)
    WORD(head)
    WORD(default)
    WORD(max_bytes)
    WORD(by_reference_from)
    WORD(str)
    WORD(bytes)
    WORD(memoryview)
    WORD(list)
    WORD(numpy)
    WORD(wire)
    WORD(module)
    WORD(data)
    WORD(bits)
    WORD(items)
    WORD(tail)
    WORD(cast)
    WORD(B)
    WORD(d)
    WORD(little)
    WORD(tobytes)
    WORD(below)
#undef IMPORT
#undef ATTRIBUTE
#undef WORD
    for (i = 0; i < 256; i++) {
        if ((st->small_ints[i] = PyLong_FromLong(i)) == NULL) {
            return -1;
        }
    }
    if (learn_layouts(st) < 0) {
        return -1;
    }
    {
        PyObject *capsule = PyCapsule_New((void *)&c_api, NATIVE_API_NAME, NULL);
        int added = capsule == NULL ? -1 : PyModule_AddObjectRef(module, "_c_api", capsule);
        Py_XDECREF(capsule);
        if (added < 0) {
            return -1;
        }
    }
    /* Last: state_of takes it as the sign that all the others are there. */
    {
        PyObject *atom_type;
        if (import_into(&atom_type, terms, "Atom") < 0) {
            return -1;
        }
        st->atom_struct = PyObject_CallFunction(atom_type, "s", "__struct__");
        st->atom_type = atom_type;
    }
    return st->atom_struct == NULL ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *st = PyModule_GetState(module);
    int i;
    if (st == NULL) {
        return 0;
    }
#define X(name) Py_VISIT(st->name);
    STATE_OBJECTS(X)
#undef X
    for (i = 0; i < 256; i++) {
        Py_VISIT(st->small_ints[i]);
    }
    for (i = 0; i < ATOM_SLOTS; i++) {
        Py_VISIT(st->atoms[i].value);
    }
    for (i = 0; i < KEY_SLOTS; i++) {
        Py_VISIT(st->keys[i].value);
    }
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *st = PyModule_GetState(module);
    int i;
    if (st == NULL) {
        return 0;
    }
#define X(name) Py_CLEAR(st->name);
    STATE_OBJECTS(X)
#undef X
    for (i = 0; i < 256; i++) {
        Py_CLEAR(st->small_ints[i]);
    }
    for (i = 0; i < ATOM_SLOTS; i++) {
        Py_CLEAR(st->atoms[i].value);
    }
    for (i = 0; i < KEY_SLOTS; i++) {
        Py_CLEAR(st->keys[i].value);
    }
    return 0;
}

static void
module_free(void *module)
{
    module_clear((PyObject *)module);
}

static PyMethodDef methods[] = {
    {"decode", (PyCFunction)(void (*)(void))decode, METH_FASTCALL | METH_KEYWORDS, decode_doc},
    {"read_term", (PyCFunction)(void (*)(void))read_term, METH_FASTCALL | METH_KEYWORDS,
     read_term_doc},
    {"encode", (PyCFunction)(void (*)(void))encode, METH_FASTCALL | METH_KEYWORDS, encode_doc},
    {"encode_parts", (PyCFunction)(void (*)(void))encode_parts, METH_FASTCALL | METH_KEYWORDS,
     encode_parts_doc},
    {NULL, NULL, 0, NULL},
};

/* Py_mod_multiple_interpreters is 3.12's, and 3.11 refuses a module that has it; one binary serves both,
 * so the definition is chosen by the Python that runs. The numbers are 3.12's own. */
#define SLOT_MULTIPLE_INTERPRETERS 3
#define PER_INTERPRETER_GIL ((void *)2)

static PyModuleDef_Slot slots_311[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

static PyModuleDef_Slot slots_312[] = {
    {Py_mod_exec, (void *)module_exec},
    {SLOT_MULTIPLE_INTERPRETERS, PER_INTERPRETER_GIL},
    {0, NULL},
};

PyDoc_STRVAR(module_doc, "The External Term Format codec in C; see port_server.etf.");

#define DEFINITION(slots)                                                                          \
    {PyModuleDef_HEAD_INIT, "native",  module_doc,      sizeof(State), methods, slots,             \
     module_traverse,       module_clear, module_free}

static PyModuleDef definition_311 = DEFINITION(slots_311);
static PyModuleDef definition_312 = DEFINITION(slots_312);

PyMODINIT_FUNC
PyInit_native(void)
{
    return PyModuleDef_Init(Py_Version >= 0x030C0000 ? &definition_312 : &definition_311);
}
