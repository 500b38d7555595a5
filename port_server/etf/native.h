/* The codec for other C of this package, without the cost of a call through Python; and what both use. */

#ifndef PORT_SERVER_ETF_NATIVE_H
#define PORT_SERVER_ETF_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* The capsule in the module; its pointer is a NativeApi. */
#define NATIVE_API_NAME "port_server.etf.native._c_api"

typedef struct {
    const char *head; /* the bytes before the term */
    Py_ssize_t head_bytes;
    PyObject *hook; /* encode()'s `default`, or NULL */
    long long max_bytes;
    int max_depth;
    Py_ssize_t room_bytes; /* most bytes that are written right into the caller's room */
} NativeWriting;

typedef struct {
    /* read_term(), `as_bytes` for binary_as="bytes": a new reference and where the term ended, or NULL with a DecodeError. */
    PyObject *(*read)(PyObject *module, PyObject *buffer, Py_ssize_t offset, int as_bytes,
                      int max_depth, Py_ssize_t *end);
    /* encode_parts(): None if everything, `size` bytes, is in `room`; else a list of parts; NULL with an
     * EncodeError. */
    PyObject *(*write)(PyObject *module, PyObject *value, const NativeWriting *how, char *room,
                       Py_ssize_t *size);
} NativeApi;

#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define LIKELY(x) (x)
#define UNLIKELY(x) (x)
#endif

/* Takes the current exception, normalised, with its traceback attached. */
static inline PyObject *
take_exception(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (value != NULL && traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

#endif
