/* The module: its state, its functions, and options that reader and writer share. */

#include "native_internal.h"

int
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

int
unknown_option(const char *function, PyObject *name)
{
    PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", function, name);
    return -1;
}

static const NativeApi c_api = {etf_read, etf_write};

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
 * are half of the time. Their offsets have not changed in decades. On the tested versions, after a check of real
 * objects, the offsets are used directly; on any later version the calls are used. */
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
#define IMPORT(slot, from, name)                  \
    if (import_into(&st->slot, from, name) < 0) { \
        return -1;                                \
    }
#define ATTRIBUTE(slot, of, name)                  \
    if (attribute_into(&st->slot, of, name) < 0) { \
        return -1;                                 \
    }
#define WORD(name)                                                    \
    if ((st->s_##name = PyUnicode_InternFromString(#name)) == NULL) { \
        return -1;                                                    \
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
    IMPORT(quick_types, structs, "quick_types")
    IMPORT(quick_modules, structs, "quick_modules")
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
    /* Last: state_of takes it as the sign that all the others exist. */
    {
        PyObject *atom_type;
        if (import_into(&atom_type, terms, "Atom") < 0) {
            return -1;
        }
        st->atom_nan = PyObject_CallFunction(atom_type, "s", "nan");
        st->atom_infinity = PyObject_CallFunction(atom_type, "s", "infinity");
        st->atom_neg_infinity = PyObject_CallFunction(atom_type, "s", "neg_infinity");
        st->nan = PyFloat_FromDouble(Py_NAN);
        st->infinity = PyFloat_FromDouble(Py_HUGE_VAL);
        st->neg_infinity = PyFloat_FromDouble(-Py_HUGE_VAL);
        st->atom_struct = PyObject_CallFunction(atom_type, "s", "__struct__");
        st->atom_type = atom_type;
    }
    return PyErr_Occurred() ? -1 : 0;
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
    {"decode", (PyCFunction)(void (*)(void))etf_decode, METH_FASTCALL | METH_KEYWORDS, etf_decode_doc},
    {"read_term", (PyCFunction)(void (*)(void))etf_read_term, METH_FASTCALL | METH_KEYWORDS,
     etf_read_term_doc},
    {"encode", (PyCFunction)(void (*)(void))etf_encode, METH_FASTCALL | METH_KEYWORDS, etf_encode_doc},
    {"encode_parts", (PyCFunction)(void (*)(void))etf_encode_parts, METH_FASTCALL | METH_KEYWORDS,
     etf_encode_parts_doc},
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

#define DEFINITION(slots)                                                        \
    {PyModuleDef_HEAD_INIT, "native", module_doc, sizeof(State), methods, slots, \
     module_traverse, module_clear, module_free}

static PyModuleDef definition_311 = DEFINITION(slots_311);
static PyModuleDef definition_312 = DEFINITION(slots_312);

PyMODINIT_FUNC
PyInit_native(void)
{
    return PyModuleDef_Init(Py_Version >= 0x030C0000 ? &definition_312 : &definition_311);
}
