/* libFuzzer's entry into check.py: one Python for the whole run, `check(bytes)` for every input. Whatever
 * exception leaves check() is a finding; the sanitizers find the rest. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

static PyObject *check;

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *input, *result;
    if (check == NULL) {
        PyObject *module;
        Py_InitializeEx(0);
        module = PyImport_ImportModule("check"); /* found through PYTHONPATH */
        check = module == NULL ? NULL : PyObject_GetAttrString(module, "check");
        if (check == NULL) {
            PyErr_Print();
            abort();
        }
    }
    /* An allocation of its very size, so that the sanitizer sees a byte too many. */
    input = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    result = PyObject_CallFunctionObjArgs(check, input, NULL);
    if (result == NULL) {
        PyErr_Print();
        abort();
    }
    Py_DECREF(result);
    Py_DECREF(input);
    return 0;
}
