/* The reader: bytes -> values. */

#include "native_cache.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

enum {
    AS_STR,
    AS_BYTES,
    AS_MEMORYVIEW,
};
enum {
    FLOATS_LIST,
    FLOATS_MEMORYVIEW,
    FLOATS_NUMPY,
};

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

/* Notes the failure of the term that begins at `at`; always NULL. */
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
    return width == 1   ? p[0]
           : width == 2 ? (Py_ssize_t)be16(p)
                        : (Py_ssize_t)be32(p);
}

/* Checks that `count` elements of at least `each` bytes fit into the rest that no other container has announced. */
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

/* Bytes of their own. For large ones the pages cost more than the copy: fewer and larger pages take half the time
 * (100 MiB: 37 ms against 86). The same bound as in numpy. */
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

/* The bytes at p where they are, as a memoryview. */
static PyObject *
view_of(Reader *r, const unsigned char *p, Py_ssize_t size)
{
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
    return view_of(r, p, size);
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

/* The atom, or the float that it stands for. */
static inline PyObject *
atom_value(Reader *r, PyObject *atom /* stolen */)
{
    State *st = r->st;
    PyObject *number = atom == st->atom_nan            ? st->nan
                       : atom == st->atom_infinity     ? st->infinity
                       : atom == st->atom_neg_infinity ? st->neg_infinity
                                                       : NULL;
    if (LIKELY(number == NULL || atom == NULL || r->plain_structs)) {
        return atom;
    }
    Py_DECREF(atom);
    return Py_NewRef(number);
}

/* A key is a name: an atom there stays one. */
static inline PyObject *
key_value(State *st, PyObject *key /* stolen */)
{
    PyObject *atom = key == st->nan            ? st->atom_nan
                     : key == st->infinity     ? st->atom_infinity
                     : key == st->neg_infinity ? st->atom_neg_infinity
                                               : NULL;
    if (LIKELY(atom == NULL || key == NULL)) {
        return key;
    }
    Py_DECREF(key);
    return Py_NewRef(atom);
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

/* FLOAT_EXT: "%.20e" in 31 bytes. Python's own parser accepts more than the BEAM's, so the text is checked first. */
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
        else if (PyTuple_SetItem(tuple, i, item) < 0) { /* other code has found it through gc */
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
            list_items(list)[i] = item; /* the list is still private: the place is empty */
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

/* Looks whether a map of two pairs is %PyPort.Bytes{}, which is raw whatever `binary_as` says, or
 * %PyPort.View{}, the same without a copy; its keys come in either order (OTP 26 sorts atoms by index). NULL without a failure: it is not. */
static PyObject *
try_port_bytes(Reader *r)
{
    const unsigned char *begin = r->p, *p, *data = NULL;
    Py_ssize_t size, data_size = 0;
    int tag, i, is_bytes = 0, is_view = 0;
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
            is_view = is_name(p, size, "Elixir.PyPort.View", 18);
        }
        else {
            break;
        }
    }
    if ((is_bytes || is_view) && data != NULL && i == 2) {
        return is_bytes ? bytes_of(data, data_size) : view_of(r, data, data_size);
    }
    failure_clear(&r->failure);
    PyErr_Clear();
    r->p = begin;
    return NULL;
}

/* How many structs.QUICK_MODULES there are. */
#define QUICK_MODULES 4

/* Moves `p` past an atom or a binary; gives its bytes, or NULL if there is none. */
static inline const unsigned char *
quick_name(const unsigned char **p, const unsigned char *end, int wanted, Py_ssize_t *size)
{
    const unsigned char *at = *p;
    Py_ssize_t room = end - at;
    int width = room < 6                       ? 0
                : wanted == BINARY_EXT         ? (at[0] == BINARY_EXT ? 4 : 0)
                : at[0] == SMALL_ATOM_UTF8_EXT ? 1
                : at[0] == ATOM_EXT            ? 2
                                               : 0;
    if (width == 0) {
        return NULL;
    }
    *size = width == 1 ? at[1] : width == 2 ? (Py_ssize_t)be16(at + 1)
                                            : (Py_ssize_t)be32(at + 1);
    at += 1 + width;
    if (*size > end - at) {
        return NULL;
    }
    *p = at + *size;
    return at;
}

/* Moves `p` past an integer of at most 32 bits. */
static inline int
quick_int(const unsigned char **p, const unsigned char *end, long *value)
{
    const unsigned char *at = *p;
    if (end - at >= 2 && at[0] == SMALL_INTEGER_EXT) {
        *value = at[1];
        *p = at + 2;
        return 1;
    }
    if (end - at >= 5 && at[0] == INTEGER_EXT) {
        *value = (int32_t)be32(at + 1);
        *p = at + 5;
        return 1;
    }
    return 0;
}

/* Moves the reader past a value, if one could be made. */
static PyObject *
quick_value(Reader *r, const unsigned char *p, PyObject *value)
{
    if (value != NULL) {
        r->p = p;
    }
    else if (PyErr_ExceptionMatches(PyExc_ValueError) || PyErr_ExceptionMatches(PyExc_ArithmeticError)) {
        PyErr_Clear(); /* out of range: the slow way says it with the place */
    }
    return value;
}

static int
learn_date_types(State *st)
{
    PyObject *module = PyImport_ImportModule("datetime"), *timezone = NULL;
    if (module != NULL && (timezone = PyObject_GetAttrString(module, "timezone")) != NULL) {
        set_reference(&st->utc, PyObject_GetAttrString(timezone, "utc"));
        set_reference(&st->date_type, PyObject_GetAttrString(module, "date"));
        set_reference(&st->datetime_type, PyObject_GetAttrString(module, "datetime"));
    }
    Py_XDECREF(timezone);
    Py_XDECREF(module);
    return st->datetime_type == NULL ? -1 : 0;
}

/* Reads a Date (5 fields), a NaiveDateTime (9) or a DateTime in UTC (13) without an object for each field, in a third of
 * the time. NULL without a failure: it is another map, or one that Python code is to look at. */
static PyObject *
try_date(Reader *r, Py_ssize_t count)
{
    static const struct {
        const char *name;
        Py_ssize_t size;
    } fields[] = {{"__struct__", 10}, {"calendar", 8}, {"year", 4}, {"month", 5}, {"day", 3}, {"hour", 4}, {"minute", 6}, {"second", 6}, {"microsecond", 11}, {"time_zone", 9}, {"zone_abbr", 9}, {"utc_offset", 10}, {"std_offset", 10}};
    static const char *const modules[] = {"Elixir.Date", "Elixir.NaiveDateTime", "Elixir.DateTime"};
    State *st = r->st;
    const char *module = modules[(count - 5) / 4];
    const unsigned char *p = r->p, *name, *text;
    Py_ssize_t size, text_size;
    long number[13], digits;
    int i, field, known, seen = 0;
    PyObject *value;
    if (r->depth >= r->max_depth || PySet_Size(st->quick_modules) != QUICK_MODULES) {
        return NULL;
    }
    for (i = 0; i < count; i++) {
        if ((name = quick_name(&p, r->end, ATOM_EXT, &size)) == NULL) {
            return NULL;
        }
        for (field = 0; field < count && !is_name(name, size, fields[field].name, (size_t)fields[field].size);) {
            field++;
        }
        switch (field) {
        case 0:
        case 1:
            text = quick_name(&p, r->end, ATOM_EXT, &text_size);
            name = (const unsigned char *)(field == 0 ? module : "Elixir.Calendar.ISO");
            known = text != NULL && is_name(text, text_size, (const char *)name, strlen((const char *)name));
            break;
        case 8:
            if ((known = r->end - p > 2 && p[0] == SMALL_TUPLE_EXT && p[1] == 2)) {
                p += 2;
                known = quick_int(&p, r->end, &number[8]) && quick_int(&p, r->end, &digits);
            }
            break;
        case 9:
        case 10:
            text = quick_name(&p, r->end, BINARY_EXT, &text_size);
            known = text != NULL && (field == 9 ? is_name(text, text_size, "Etc/UTC", 7) : is_name(text, text_size, "UTC", 3));
            break;
        default: known = field < count && quick_int(&p, r->end, &number[field]);
        }
        if (!known) {
            return NULL;
        }
        seen |= 1 << field;
    }
    if (r->end - p < r->owed || seen != (1 << count) - 1 || (st->datetime_type == NULL && learn_date_types(st) < 0)) {
        return NULL;
    }
    value = count == 5 ? PyObject_CallFunction(st->date_type, "lll", number[2], number[3], number[4])
                       : PyObject_CallFunction(st->datetime_type, "lllllllO", number[2], number[3], number[4], number[5],
                                               number[6], number[7], number[8], count == 9 ? Py_None : st->utc);
    return quick_value(r, p, value);
}

/* The same for a Decimal, which has 4 fields, with a coefficient of at most 63 bits. */
static PyObject *
try_decimal(Reader *r)
{
    State *st = r->st;
    const unsigned char *p = r->p, *end = r->end, *name, *text;
    Py_ssize_t size, text_size;
    long sign = 0, exp = 0, small;
    unsigned long long coef = 0;
    int i, k, known, seen = 0;
    char digits[64];
    if (PySet_Size(st->quick_modules) != QUICK_MODULES) {
        return NULL;
    }
    for (i = 0; i < 4; i++) {
        if ((name = quick_name(&p, end, ATOM_EXT, &size)) == NULL) {
            return NULL;
        }
        if (is_name(name, size, "__struct__", 10)) {
            text = quick_name(&p, end, ATOM_EXT, &text_size);
            known = text != NULL && is_name(text, text_size, "Elixir.Decimal", 14) ? 1 : 0;
        }
        else if (is_name(name, size, "sign", 4)) {
            known = quick_int(&p, end, &sign) && (sign == 1 || sign == -1) ? 2 : 0;
        }
        else if (is_name(name, size, "exp", 3)) {
            known = quick_int(&p, end, &exp) ? 4 : 0;
        }
        else if (!is_name(name, size, "coef", 4)) {
            return NULL;
        }
        else if (end - p > 3 && p[0] == SMALL_BIG_EXT && p[1] <= 8 && p[2] == 0 && end - p >= 3 + p[1]) {
            for (k = p[1]; k > 0; k--) {
                coef = coef << 8 | p[2 + k];
            }
            p += 3 + p[1];
            known = 8;
        }
        else {
            known = quick_int(&p, end, &small) && small >= 0 ? 8 : 0;
            coef = known ? (unsigned long long)small : 0;
        }
        if (known == 0) {
            return NULL;
        }
        seen |= known;
    }
    if (seen != 15 || end - p < r->owed) {
        return NULL;
    }
    if (st->decimal_type == NULL) {
        PyObject *module = PyImport_ImportModule("decimal");
        if (module == NULL) {
            return NULL;
        }
        set_reference(&st->decimal_type, PyObject_GetAttrString(module, "Decimal"));
        Py_DECREF(module);
    }
    PyOS_snprintf(digits, sizeof(digits), "%s%lluE%ld", sign < 0 ? "-" : "", coef, exp);
    return quick_value(r, p, PyObject_CallFunction(st->decimal_type, "s", digits));
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
    if ((count == 4 || count == 5 || count == 9 || count == 13) && !r->plain_structs && left(r) > 0 &&
        (r->p[0] == SMALL_ATOM_UTF8_EXT || r->p[0] == ATOM_EXT)) {
        value = count == 4 ? try_decimal(r) : try_date(r, count);
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
            key = key_value(st, read_value(r, 1));
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
        r->p = first; /* once more, slowly, to find the two equal keys */
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
    r->p = r->end; /* no length of the compressed data is announced: it is the rest of the input */
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
        return p == NULL ? NULL : atom_value(r, atom_named(r, begin, begin[0], p, size));
    case ATOM_EXT:
    case ATOM_UTF8_EXT:
        size = take_length(r, 2);
        p = size < 0 ? NULL : take(r, size);
        return p == NULL ? NULL : atom_value(r, atom_named(r, begin, begin[0], p, size));
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

/* ---- entry points ------------------------------------------------------------------------------ */

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
            int binary_as, int max_depth, PyObject *const *options, PyObject *names,
            Py_ssize_t *end)
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
    r.binary_as = binary_as;
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

const char etf_decode_doc[] = PyDoc_STR(
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

PyObject *
etf_decode(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
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
    return read_buffer(st, "decode", args[0], 0, 1, AS_STR, DEFAULT_MAX_DEPTH, args + nargs, names,
                       &end);
}

const char etf_read_term_doc[] = PyDoc_STR(
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

PyObject *
etf_read_term(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
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
    value = read_buffer(st, "read_term", args[0], offset, 0, AS_STR, DEFAULT_MAX_DEPTH, args + nargs, names,
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

PyObject *
etf_read(PyObject *module, PyObject *buffer, Py_ssize_t offset, int as_bytes, int max_depth,
         Py_ssize_t *end)
{
    State *st = state_of(module);
    if (st == NULL) {
        return NULL;
    }
    return read_buffer(st, "read_term", buffer, offset, 0, as_bytes ? AS_BYTES : AS_STR, max_depth,
                       NULL, NULL, end);
}
