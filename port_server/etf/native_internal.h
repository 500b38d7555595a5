/* The inside of port_server.etf.native: External Term Format <-> Python values, for the stable ABI of CPython 3.11.
 *
 *     native.h             its interface for other C of this package
 *     native_internal.h    tags and limits; the module's state, there are no C globals; failures; helpers
 *     native_cache.h       atoms and short keys by their bytes on the wire
 *     native_reader.c      bytes -> values: decode, read_term
 *     native_writer.c      values -> bytes: encode, encode_parts
 *     native_failure.c     reason and path of a failure, collected on the way up to the root
 *     native_module.c      imports at the start, slots by the running Py_Version
 *
 * Two rules hold everywhere. A length from the wire is compared with the bytes left before anything is
 * allocated for it, and it is read once: the buffer may be mutable. A borrowed reference does not
 * live across a call that can run Python code (a hook, a registered conversion, a __del__).
 *
 * fallback.py keeps the same contract with the same words; a test compares the two.
 */

#ifndef PORT_SERVER_ETF_NATIVE_INTERNAL_H
#define PORT_SERVER_ETF_NATIVE_INTERNAL_H

#include "native.h"

#include <stdarg.h>
#include <stdint.h>
#include <string.h>

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
/* clang-format off */
#define STATE_OBJECTS(X)                                                                           \
    X(atom_type) X(pid_type) X(port_type) X(reference_type) X(fun_type) X(local_type)              \
    X(bitstring_type) X(improper_type) X(frozen_list_type) X(frozen_map_type) X(struct_type)       \
    X(pid_of) X(port_of) X(reference_of) X(fun_of) X(local_of)                                     \
    X(etf_error) X(decode_error) X(encode_error) X(hook_failed) X(path_of) X(show) X(key_step)     \
    X(resolve) X(name_of) X(from_struct_by_module) X(registered_builtin_subtypes) X(quick_types)   \
    X(quick_modules) X(date_type) X(datetime_type) X(decimal_type)                                 \
    X(atom_struct) X(atom_nan) X(atom_infinity) X(atom_neg_infinity)                               \
    X(nan) X(infinity) X(neg_infinity) X(utc)                                                      \
    X(dict_new) X(int_from_bytes) X(int_to_bytes) X(int_abs) X(int_bit_length)                     \
    X(s_binary_as) X(s_floats_as) X(s_max_depth) X(s_plain_structs) X(s_head) X(s_default)         \
    X(s_max_bytes) X(s_by_reference_from) X(s_str) X(s_bytes) X(s_memoryview) X(s_list)            \
    X(s_numpy) X(s_wire) X(s_module) X(s_data) X(s_bits) X(s_items) X(s_tail) X(s_cast) X(s_B)     \
    X(s_d) X(s_little) X(s_tobytes) X(s_below)
/* clang-format on */

typedef struct {
#define X(name) PyObject *name;
    STATE_OBJECTS(X)
#undef X
    PyObject *small_ints[256];
    int layouts_known;
    int dates_known;           /* 1: their layout is what the writer takes it for; -1: it is another */
    Py_ssize_t tuple_items_at; /* 3.14 moved them */
    Py_ssize_t last_size;      /* of the last result that outgrew the stack: the next may be like it */
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

static inline PyObject *
call1(PyObject *callable, PyObject *argument)
{
    return PyObject_CallFunctionObjArgs(callable, argument, NULL);
}

/* The offsets of a list's items and of a float's value, in every CPython from 3.11 to 3.14; `learn_layouts` checks them
 * before they are used. A tuple gives its own offset. */
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

static inline State *
state_of(PyObject *module)
{
    State *st = PyModule_GetState(module);
    if (UNLIKELY(st == NULL || st->atom_type == NULL)) {
        PyErr_SetString(PyExc_RuntimeError, "port_server.etf.native has been unloaded");
        return NULL;
    }
    return st;
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

/* Hidden: a call to a function that another library might define goes through a table. */
#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility push(hidden)
#endif

void failure_clear(Failure *f);
COLD void failure_set_va(Failure *f, Py_ssize_t offset, const char *remedy, const char *format, va_list args);
COLD void failure_set(Failure *f, Py_ssize_t offset, const char *remedy, const char *format, ...);
COLD void failure_step(Failure *f, PyObject *step);
COLD void failure_step_index(Failure *f, Py_ssize_t index);
COLD void failure_step_key(Failure *f, PyObject *key);
COLD void failure_from_hook(State *st, Failure *f, Py_ssize_t offset, PyObject *what);
COLD void failure_raise(State *st, Failure *f, int encoding);
COLD void raise_exception(PyObject *error /* stolen */);

/* ---- between the files ------------------------------------------------------------------------- */

int max_depth_of(PyObject *value, int *out);
COLD int unknown_option(const char *function, PyObject *name);

extern const char etf_decode_doc[], etf_read_term_doc[], etf_encode_doc[], etf_encode_parts_doc[];
PyObject *etf_decode(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *etf_read_term(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *etf_encode(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names);
PyObject *etf_encode_parts(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names);

/* See NativeApi. */
PyObject *etf_read(PyObject *module, PyObject *buffer, Py_ssize_t offset, int as_bytes, int max_depth,
                   Py_ssize_t *end);
PyObject *etf_write(PyObject *module, PyObject *value, const NativeWriting *how, char *room,
                    Py_ssize_t *size);

#if defined(__GNUC__) || defined(__clang__)
#pragma GCC visibility pop
#endif

static inline int
is_word(PyObject *word, PyObject *wanted)
{
    return word == wanted || (PyUnicode_Check(word) && PyUnicode_Compare(word, wanted) == 0);
}

#endif
