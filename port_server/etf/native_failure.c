/* Failures: the reason and the path, from the bad term up to the root. */

#include "native_internal.h"

void
failure_clear(Failure *f)
{
    Py_CLEAR(f->reason);
    Py_CLEAR(f->remedy);
    Py_CLEAR(f->cause);
    Py_CLEAR(f->raised);
    Py_CLEAR(f->steps);
}

void
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

void
failure_set(Failure *f, Py_ssize_t offset, const char *remedy, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    failure_set_va(f, offset, remedy, format, args);
    va_end(args);
}

/* Adds one step of the path; steals `step`, which may be NULL. */
void
failure_step(Failure *f, PyObject *step)
{
    if (f->steps != NULL && step != NULL && PyList_Append(f->steps, step) < 0) {
        failure_clear(f);
    }
    Py_XDECREF(step);
}

void
failure_step_index(Failure *f, Py_ssize_t index)
{
    if (f->steps != NULL) {
        failure_step(f, PyLong_FromSsize_t(index));
    }
}

void
failure_step_key(Failure *f, PyObject *key)
{
    if (f->steps != NULL) {
        failure_step(f, Py_NewRef(key));
    }
}

void
raise_exception(PyObject *error /* stolen */)
{
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    Py_DECREF(error);
}

/* Turns the exception of a conversion into a failure; a BaseException that is no Exception passes. */
void
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

/* At the root: raises the failure. */
void
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
