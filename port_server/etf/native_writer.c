/* The writer: values -> bytes. */

#include "native_internal.h"

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
    Py_ssize_t hooks; /* calls that ran user code so far */
    PyObject *hook;   /* default=, or NULL */
    Failure failure;
} Writer;

static int write_value(Writer *w, PyObject *value);

/* Notes the failure of the value being written; always -1. */
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
        return value != value ? PUT_ATOM(w, "nan")
               : value > 0.0  ? PUT_ATOM(w, "infinity")
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

/* Whether the items of a buffer are numbers or single bytes; those of an array of objects are addresses. */
static int
is_numeric(const char *format)
{
    if (format == NULL) {
        return 1;
    }
    format += *format != 0 && strchr("@=<>!", *format) != NULL;
    format += *format == 'Z'; /* of a complex number */
    return *format != 0 && strchr("?bBhHiIlLqQnNefdgFDc", *format) != NULL && format[1] == 0;
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
    if (!is_numeric(view.format)) {
        wfail(w, "Send the values as a list, as array.tolist() gives them",
              "the items of a memoryview of format '%s' are no numbers", view.format);
    }
    else if (view.len > (Py_ssize_t)UINT32_MAX) {
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

/* Writes one of the values that run no code, so that no reference has to be held meanwhile. -3: it is none. */
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
        PyObject *item = !direct                 ? get(sequence, i)
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

/* The kinds of keys that may become equal on the BEAM, though they differ in Python: never within one of these kinds,
 * and only in some mixtures of them. */
enum {
    KEY_STR = 1,
    KEY_INT = 2,
    KEY_BYTES = 4,
    KEY_CONSTANT = 8,
    KEY_FLOAT = 16,
    KEY_ATOM = 32,
    KEY_OTHER = 64,
};

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

/* A fingerprint of a sequence of keys, without references to them. */
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
    count = is_list                ? PyList_Size(items)
            : PyTuple_Check(items) ? PyTuple_Size(items)
                                   : 0;
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

/* ---- types that come in long lists ---------------------------------------------------------------
 * Their structs are written from the values' own bytes; mapping.py gives the same terms, more slowly. */

/* As in structs.py. */
enum {
    QUICK_INT = 1,
    QUICK_FLOAT = 2,
    QUICK_BOOL = 3,
    QUICK_DATE = 4,
    QUICK_DATETIME = 5,
    QUICK_DECIMAL = 6,
    QUICK_TIMESTAMP = 7,
};

#define NOT_QUICK -4
/* Deepest term inside of these structs. */
#define QUICK_DEPTH 3
/* In the C of datetime: a hash, whether there is a zone, the packed fields, the fold, and the zone. */
#define DATE_AT (sizeof(PyObject) + sizeof(Py_hash_t) + 1)
#define ZONE_AT (sizeof(PyObject) + sizeof(Py_hash_t) + 16)

static int
has_field(PyObject *value, const char *name, long wanted)
{
    PyObject *field = PyObject_GetAttrString(value, name);
    long found = field == NULL ? -1 : PyLong_AsLong(field);
    Py_XDECREF(field);
    return found == wanted;
}

/* Compares the layout with the attributes of a first value, whose bytes from `p` on are `count`. */
static int
learn_dates(State *st, PyObject *value, const unsigned char *p, int is_datetime)
{
    PyObject *module = PyImport_ImportModule("datetime"), *timezone = NULL;
    int known = st->layouts_known && has_field(value, "year", p[0] << 8 | p[1]) && has_field(value, "month", p[2]) &&
                has_field(value, "day", p[3]);
    if (known && is_datetime) {
        known = has_field(value, "hour", p[4]) && has_field(value, "minute", p[5]) && has_field(value, "second", p[6]) &&
                has_field(value, "microsecond", (long)p[7] << 16 | p[8] << 8 | p[9]);
    }
    timezone = module == NULL ? NULL : PyObject_GetAttrString(module, "timezone");
    if (st->utc == NULL && timezone != NULL) {
        st->utc = PyObject_GetAttrString(timezone, "utc");
    }
    Py_XDECREF(timezone);
    Py_XDECREF(module);
    PyErr_Clear();
    return st->dates_known = known && st->utc != NULL ? 1 : -1;
}

static inline int
put_small(Writer *w, long value)
{
    char *out;
    if (reserve(w, 5) < 0) {
        return -1;
    }
    out = w->buffer + w->size;
    if (value >= 0 && value < 256) {
        out[0] = SMALL_INTEGER_EXT;
        out[1] = (char)value;
        w->size += 2;
    }
    else {
        out[0] = INTEGER_EXT;
        put_be32(out + 1, (uint32_t)value);
        w->size += 5;
    }
    return 0;
}

#define PUT(w, name, value) (PUT_ATOM(w, name) < 0 || put_small(w, value) < 0)

static int
write_date(Writer *w, PyObject *value, int is_datetime)
{
    State *st = w->st;
    const unsigned char *p = (const unsigned char *)value + DATE_AT;
    int known = st->dates_known == 0 ? learn_dates(st, value, p, is_datetime) : st->dates_known;
    int is_utc = 0;
    if (known < 0) {
        return NOT_QUICK;
    }
    if (is_datetime && p[-1]) {
        PyObject *zone;
        memcpy(&zone, (const char *)value + ZONE_AT, sizeof(zone));
        if (zone != st->utc) {
            return NOT_QUICK;
        }
        is_utc = 1;
    }
    if (put_header(w, MAP_EXT, !is_datetime ? 5 : is_utc ? 13
                                                         : 9) < 0 ||
        PUT_ATOM(w, "__struct__") < 0 ||
        (!is_datetime ? PUT_ATOM(w, "Elixir.Date")
         : is_utc     ? PUT_ATOM(w, "Elixir.DateTime")
                      : PUT_ATOM(w, "Elixir.NaiveDateTime")) < 0 ||
        PUT_ATOM(w, "calendar") < 0 || PUT_ATOM(w, "Elixir.Calendar.ISO") < 0 ||
        PUT(w, "year", p[0] << 8 | p[1]) || PUT(w, "month", p[2]) || PUT(w, "day", p[3])) {
        return -1;
    }
    if (is_datetime) {
        long micros = (long)p[7] << 16 | p[8] << 8 | p[9];
        if (PUT(w, "hour", p[4]) || PUT(w, "minute", p[5]) || PUT(w, "second", p[6]) || PUT_ATOM(w, "microsecond") < 0 ||
            put(w, "h\2", 2) < 0 || put_small(w, micros) < 0 || put_small(w, micros ? 6 : 0) < 0) {
            return -1;
        }
    }
    if (is_utc && (PUT_ATOM(w, "time_zone") < 0 || put(w, "m\0\0\0\7Etc/UTC", 12) < 0 || PUT_ATOM(w, "zone_abbr") < 0 ||
                   put(w, "m\0\0\0\3UTC", 8) < 0 || PUT(w, "utc_offset", 0) || PUT(w, "std_offset", 0))) {
        return -1;
    }
    return 0;
}

#define MOST_DIGITS 18 /* that fit into 64 bits */
#define LONGEST_EXPONENT 1000000000L

/* From its text: -12.3E+4. Longer ones, infinities and NaNs are not quick. */
static int
write_decimal(Writer *w, PyObject *value)
{
    PyObject *text = PyObject_Str(value), *number;
    const char *s = text == NULL ? NULL : PyUnicode_AsUTF8AndSize(text, NULL);
    uint64_t coefficient = 0;
    long exponent = 0, fraction = 0, sign = 1;
    int digits = 0, in_fraction = 0, result = NOT_QUICK, negative = 0;
    if (s == NULL) {
        Py_XDECREF(text);
        PyErr_Clear();
        return NOT_QUICK;
    }
    if (*s == '-') {
        sign = -1;
        s++;
    }
    for (; (*s >= '0' && *s <= '9') || (*s == '.' && !in_fraction); s++) {
        if (*s == '.') {
            in_fraction = 1;
            continue;
        }
        coefficient = coefficient * 10 + (uint64_t)(*s - '0');
        digits += digits > 0 || *s != '0';
        fraction += in_fraction;
        if (digits > MOST_DIGITS) {
            goto done;
        }
    }
    if (*s == 'E' || *s == 'e') {
        s++;
        negative = *s == '-';
        for (s++; *s >= '0' && *s <= '9' && exponent < LONGEST_EXPONENT; s++) {
            exponent = exponent * 10 + (*s - '0');
        }
    }
    exponent = (negative ? -exponent : exponent) - fraction;
    if (*s != 0 || exponent > LONGEST_EXPONENT || exponent < -LONGEST_EXPONENT) {
        goto done;
    }
    result = -1;
    number = PyLong_FromUnsignedLongLong(coefficient);
    if (number != NULL && put_header(w, MAP_EXT, 4) == 0 && PUT_ATOM(w, "__struct__") == 0 &&
        PUT_ATOM(w, "Elixir.Decimal") == 0 && !PUT(w, "sign", sign) && PUT_ATOM(w, "coef") == 0 &&
        write_int(w, number) == 0 && !PUT(w, "exp", exponent)) {
        result = 0;
    }
    Py_XDECREF(number);
done:
    Py_DECREF(text);
    return result;
}

/* Whether a Timestamp of pandas is what the datetime in it says. That has another year where datetime does not have its own. */
static int
is_datetime(PyObject *value)
{
    const unsigned char *p = (const unsigned char *)value + DATE_AT;
    int is = has_field(value, "nanosecond", 0) && has_field(value, "year", p[0] << 8 | p[1]);
    PyErr_Clear();
    return is;
}

static int
write_quick(Writer *w, PyObject *value)
{
    PyObject *kind = PyDict_GetItemWithError(w->st->quick_types, (PyObject *)Py_TYPE(value)), *number;
    int result;
    if (kind == NULL) {
        PyErr_Clear(); /* of a metaclass that cannot be hashed */
        return NOT_QUICK;
    }
    if (w->depth + QUICK_DEPTH > w->max_depth) {
        return NOT_QUICK;
    }
    switch (PyLong_AsLong(kind)) {
    case QUICK_INT:
        number = PyNumber_Index(value);
        result = number == NULL ? -1 : write_any_int(w, number);
        Py_XDECREF(number);
        return result;
    case QUICK_FLOAT: return write_double(w, PyFloat_AsDouble(value));
    case QUICK_BOOL: return PyObject_IsTrue(value) ? PUT_ATOM(w, "true") : PUT_ATOM(w, "false");
    case QUICK_DATE: return write_date(w, value, 0);
    case QUICK_DATETIME: return write_date(w, value, 1);
    case QUICK_TIMESTAMP: return is_datetime(value) ? write_date(w, value, 1) : NOT_QUICK;
    case QUICK_DECIMAL: return write_decimal(w, value);
    default: return NOT_QUICK;
    }
}

/* Values of all other types: enums, registered types, dataclasses, subclasses, the rest. */
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
    result = write_quick(w, value);
    return result != NOT_QUICK ? result : write_other(w, value);
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

#define WRITER(name, state, reference_from) \
    char stack[STACK_BUFFER];               \
    Writer name;                            \
    memset(&name, 0, sizeof(name));         \
    name.st = state;                        \
    name.buffer = stack;                    \
    name.capacity = STACK_BUFFER;           \
    name.max_bytes = DEFAULT_MAX_BYTES;     \
    name.max_depth = DEFAULT_MAX_DEPTH;     \
    name.by_reference_from = reference_from

const char etf_encode_doc[] = PyDoc_STR(
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

PyObject *
etf_encode(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
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

const char etf_encode_parts_doc[] = PyDoc_STR(
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

/* The contents of w, as a list of bytes and of the objects that were not copied. */
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

PyObject *
etf_encode_parts(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
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

PyObject *
etf_write(PyObject *module, PyObject *value, const NativeWriting *how, char *room, Py_ssize_t *size)
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
