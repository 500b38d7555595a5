/* Leaf functions of the request path: read a frame, read the envelope of a request, evaluate a plain request, write a
 * frame. Each takes bytes, dicts and callables, and gives bytes, or None if it does not apply; then Python does the
 * same more slowly. No function holds an object of the server.
 *
 * docs/performance.md says how much each of them saves.
 */

#define _GNU_SOURCE /* pwritev2 */
#include "../etf/native.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEADER_BYTES 4
/* Above 64 KiB a buffer that is made for one read costs a fresh mmap. */
#define READ_BYTES 65536
/* Replies up to this size are written right into a buffer on the stack. */
#define ROOM_BYTES 4092 /* with the header one page: a pipe takes it whole */
#define DEEPEST_OPTION 4
#define LONGEST_ID_TERM 260

static const char request_heads[2][13] = {"\x83h\x05w\x04"
                                          "evalm\0\0",
                                          "\x83h\x06w\x04"
                                          "callm\0\0"};
/* An answer to a call: the call's id, of eight bytes, and the result follow. */
static const char answer_head[17] = "\x83h\x03w\x06"
                                    "answerm\0\0\0\x08";
static const char ok_head[7] = {'\x83', 'h', 3, 'w', 2, 'o', 'k'};
static const char empty_map[5] = {'t', 0, 0, 0, 0};
/* Offsets of the id's term and of its length in a request. */
#define ID_TERM_AT 9
#define ID_LENGTH_AT 13
#define CALL_ID_BYTES 8
#define ANSWER_HEAD_BYTES 16

static inline Py_ssize_t
length_at(const unsigned char *data)
{
    return (Py_ssize_t)data[0] << 24 | (Py_ssize_t)data[1] << 16 | (Py_ssize_t)data[2] << 8 | data[3];
}

static int
check_count(const char *function, Py_ssize_t count, Py_ssize_t wanted)
{
    if (count != wanted) {
        PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, not %zd", function, wanted, count);
        return -1;
    }
    return 0;
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

/* The end of the term at `p`, if it is of a kind that options consist of; else NULL. */
static const unsigned char *
skip(const unsigned char *p, const unsigned char *end, int depth)
{
    Py_ssize_t size = 0, terms = 0;
    if (end - p < 5) { /* every option is followed by more */
        return NULL;
    }
    switch (p[0]) {
    case 'a': size = 2; break;
    case 'b': size = 5; break;
    case 'w': size = 2 + p[1]; break;
    case 'd': size = 3 + (p[1] << 8 | p[2]); break;
    case 'm': size = 5 + length_at(p + 1); break;
    case 't':
        size = 5;
        terms = 2 * length_at(p + 1);
        break;
    default: return NULL;
    }
    if (size > end - p || depth == DEEPEST_OPTION) {
        return NULL;
    }
    p += size;
    while (terms-- > 0 && p != NULL) {
        p = skip(p, end, depth + 1);
    }
    return p;
}

/* The envelope of a request: (frame, whether it is a call, its id's term, its options, where they end). None if it is no
 * request, or its options are not in `kept`.
 */
static PyObject *
envelope(const char *start, Py_ssize_t size, PyObject *kept)
{
    const unsigned char *options_start, *options_end;
    PyObject *key, *options, *found;
    int is_call;
    is_call = size > ID_LENGTH_AT && memcmp(start, request_heads[1], ID_LENGTH_AT) == 0;
    if (!is_call && (size <= ID_LENGTH_AT || memcmp(start, request_heads[0], ID_LENGTH_AT) != 0)) {
        return Py_NewRef(Py_None);
    }
    options_start = (const unsigned char *)start + ID_LENGTH_AT + 1 + (unsigned char)start[ID_LENGTH_AT];
    options_end = skip(options_start, (const unsigned char *)start + size, 0);
    if (options_end == NULL) {
        return Py_NewRef(Py_None);
    }
    key = PyBytes_FromStringAndSize((const char *)options_start, options_end - options_start);
    if (key == NULL) {
        return NULL;
    }
    options = PyDict_GetItemWithError(kept, key);
    Py_DECREF(key);
    if (options == NULL) {
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    found = PyTuple_New(5);
    if (found == NULL) {
        return NULL;
    }
    PyTuple_SetItem(found, 0, PyBytes_FromStringAndSize(start, size));
    PyTuple_SetItem(found, 1, Py_NewRef(is_call ? Py_True : Py_False));
    PyTuple_SetItem(found, 2, PyBytes_FromStringAndSize(start + ID_TERM_AT, (const char *)options_start - start - ID_TERM_AT));
    PyTuple_SetItem(found, 3, Py_NewRef(options));
    PyTuple_SetItem(found, 4, PyLong_FromSsize_t((const char *)options_end - start));
    if (PyErr_Occurred()) {
        Py_CLEAR(found);
    }
    return found;
}

PyDoc_STRVAR(receive_doc,
             "receive($module, fd, max_frame_bytes, kept, /)\n"
             "--\n\n"
             "Wait for input, and give it: (frame, whether it is a call, the term of its id, its options, where\n"
             "they end) if it is one request with options in `kept`, where they stand by the bytes of their term;\n"
             "(frame, id of the call, where the result begins) if it is the answer to a call; bytes if it is any\n"
             "other frame; else, as it came, a bytearray, which is empty at the end.\n\n"
             "Raises:\n"
             "    OSError: the read failed.");

static PyObject *
receive(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    char data[READ_BYTES];
    Py_ssize_t size, limit;
    PyObject *found;
    int fd;
    if (check_count("receive", count, 3) < 0) {
        return NULL;
    }
    fd = (int)PyLong_AsLong(args[0]);
    limit = PyLong_AsSsize_t(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    for (;;) {
        Py_BEGIN_ALLOW_THREADS
        size = read(fd, data, sizeof(data));
        Py_END_ALLOW_THREADS
        if (LIKELY(size >= 0)) {
            break;
        }
        if (errno != EINTR) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
    if (UNLIKELY(size <= HEADER_BYTES || length_at((unsigned char *)data) != size - HEADER_BYTES ||
                 size - HEADER_BYTES > limit)) {
        return PyByteArray_FromStringAndSize(data, size);
    }
    if (size > (Py_ssize_t)(HEADER_BYTES + ANSWER_HEAD_BYTES + CALL_ID_BYTES) &&
        memcmp(data + HEADER_BYTES, answer_head, ANSWER_HEAD_BYTES) == 0) {
        PyObject *frame = PyBytes_FromStringAndSize(data + HEADER_BYTES, size - HEADER_BYTES);
        PyObject *call_id = PyBytes_FromStringAndSize(data + HEADER_BYTES + ANSWER_HEAD_BYTES, CALL_ID_BYTES);
        return Py_BuildValue("(NNn)", frame, call_id, (Py_ssize_t)ANSWER_HEAD_BYTES + CALL_ID_BYTES);
    }
    found = envelope(data + HEADER_BYTES, size - HEADER_BYTES, args[2]);
    if (UNLIKELY(found == Py_None)) {
        Py_DECREF(found);
        found = PyBytes_FromStringAndSize(data + HEADER_BYTES, size - HEADER_BYTES);
    }
    return found;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(write_doc,
             "write($module, fd, data, writers, /)\n"
             "--\n\n"
             "Write all of `data` into a pipe, at once and with the GIL kept, unless `writers` has an element. Tell\n"
             "whether it was written; else none of it was. Beside a thread that computes, to let go of the GIL costs\n"
             "a whole switch interval until it is back.");

static PyObject *
write_at_once(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    char *data;
    Py_ssize_t size, written = -1;
    int fd;
    if (check_count("write", count, 3) < 0 || PyBytes_AsStringAndSize(args[1], &data, &size) < 0) {
        return NULL;
    }
    fd = (int)PyLong_AsLong(args[0]);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
#ifdef RWF_NOWAIT
    if (size <= PIPE_BUF && PyList_Size(args[2]) == 0) { /* up to that size a pipe takes all or none */
        struct iovec part = {data, (size_t)size};
        written = pwritev2(fd, &part, 1, -1, RWF_NOWAIT);
    }
#endif
    return PyBool_FromLong(written == size);
}

/* ---- evaluating -------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *given;   /* the keyword arguments, which keep the objects below alive */
    PyObject *native;  /* the codec's module */
    PyObject *evals;   /* source -> (code of statements or None, code of the last expression or None, loader) */
    PyObject *calls;   /* target -> a callable that gives the function */
    PyObject *base;    /* the initial names of a namespace */
    PyObject *names;   /* keys of globals and keywords -> names */
    PyObject *export;  /* the codec's hook */
    PyObject *collect; /* frees what a request leaves in cycles */
    const NativeApi *codec;
    long long max_bytes;
    int max_depth;
} Plain;

static int
is_plain_value(PyObject *value)
{
    PyTypeObject *type = Py_TYPE(value);
    return type == &PyLong_Type || type == &PyUnicode_Type || type == Py_TYPE(Py_None) || type == &PyFloat_Type ||
           type == &PyBool_Type || type == &PyList_Type || type == &PyDict_Type || type == &PyTuple_Type ||
           type == &PyBytes_Type || type == &PySet_Type || type == &PyFrozenSet_Type;
}

/* The values of a map by their names; NULL, mostly without an exception, if one of its keys is not known to be a name. */
static PyObject *
by_name(Plain *self, PyObject *values)
{
    PyObject *key, *value, *named;
    Py_ssize_t at = 0;
    if (PyDict_Size(values) == 0) {
        return Py_NewRef(values);
    }
    named = PyDict_New();
    while (named != NULL && PyDict_Next(values, &at, &key, &value)) {
        PyObject *name = PyDict_GetItemWithError(self->names, key);
        if (name == NULL || PyDict_SetItem(named, name, value) < 0) {
            Py_CLEAR(named);
        }
    }
    return named;
}

static PyObject *
run_code(PyObject *entry, PyObject *namespace)
{
    PyObject *body = PyTuple_GetItem(entry, 0), *tail = PyTuple_GetItem(entry, 1), *done;
    if (body == NULL || tail == NULL) {
        return NULL;
    }
    if (body != Py_None) {
        done = PyEval_EvalCode(body, namespace, namespace);
        if (done == NULL || tail == Py_None) {
            return done;
        }
        Py_DECREF(done);
    }
    return tail == Py_None ? Py_NewRef(Py_None) : PyEval_EvalCode(tail, namespace, namespace);
}

static PyObject *
call_target(PyObject *find, PyObject *args, PyObject *keywords)
{
    PyObject *value = NULL, *function = PyObject_CallNoArgs(find), *positional = NULL;
    if (function != NULL) {
        positional = PyList_AsTuple(args);
    }
    if (positional != NULL) {
        value = PyObject_Call(function, positional, PyDict_Size(keywords) == 0 ? NULL : keywords);
    }
    Py_XDECREF(positional);
    Py_XDECREF(function);
    return value;
}

/* A frame that begins with `head` and ends with `value`: bytes with its header, or a list of parts without. */
static PyObject *
write_frame(Plain *self, PyObject *value, const char *head, Py_ssize_t head_bytes)
{
    char room[HEADER_BYTES + ROOM_BYTES];
    NativeWriting how = {head, head_bytes, self->export, self->max_bytes, self->max_depth, ROOM_BYTES};
    Py_ssize_t size = 0;
    PyObject *parts = self->codec->write(self->native, value, &how, room + HEADER_BYTES, &size);
    if (parts != Py_None) {
        return parts;
    }
    Py_DECREF(parts);
    room[0] = (char)(size >> 24);
    room[1] = (char)(size >> 16);
    room[2] = (char)(size >> 8);
    room[3] = (char)size;
    return PyBytes_FromStringAndSize(room, HEADER_BYTES + size);
}

PyDoc_STRVAR(frame_doc,
             "frame($self, head, value, /)\n"
             "--\n\n"
             "Write a frame that begins with `head` and ends with `value`: bytes with its header, or a list of parts\n"
             "without.");

static PyObject *
frame(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    char *head;
    Py_ssize_t size;
    if (check_count("frame", count, 2) < 0 || PyBytes_AsStringAndSize(args[0], &head, &size) < 0) {
        return NULL;
    }
    return write_frame((Plain *)object, args[1], head, size);
}

PyDoc_STRVAR(evaluate_doc,
             "evaluate($self, frame, at, is_call, id_term, as_bytes, namespace, /)\n"
             "--\n\n"
             "Evaluate a request whose code or target begins at `at`.\n\n"
             "Args:\n"
             "    namespace: that of a session, or None for a new one.\n\n"
             "Returns:\n"
             "    The reply: bytes with its header, or a list of parts without.\n"
             "    None: the request is not plain, and nothing was run.\n"
             "    (value, namespace): it ran, and its value is none of the usual types.\n"
             "    (step, error, namespace): what went wrong, and at which step.");

static PyObject *
evaluate(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    Plain *self = (Plain *)object;
    PyObject *frame, *entry = NULL, *code = NULL, *first = NULL, *second = NULL, *value = NULL, *result = NULL;
    PyObject *namespace = NULL, *named = NULL;
    const char *step = "run";
    char *start, *id_term, head[sizeof(ok_head) + LONGEST_ID_TERM];
    Py_ssize_t size, at, id_bytes, length;
    int is_call, as_bytes;
    if (check_count("evaluate", count, 6) < 0) {
        return NULL;
    }
    frame = args[0];
    at = PyLong_AsSsize_t(args[1]);
    is_call = args[2] == Py_True;
    as_bytes = args[4] == Py_True;
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[3], &id_term, &id_bytes) < 0) {
        return NULL;
    }
    if (Py_TYPE(frame) != &PyBytes_Type || PyBytes_AsStringAndSize(frame, &start, &size) < 0 || size - at < 5 ||
        start[at] != 'm' || id_bytes > LONGEST_ID_TERM) {
        return Py_NewRef(Py_None);
    }
    length = length_at((unsigned char *)start + at + 1);
    if (length > size - at - 5) {
        return Py_NewRef(Py_None);
    }
    code = PyUnicode_DecodeUTF8(start + at + 5, length, NULL);
    if (code == NULL) {
        PyErr_Clear(); /* Python repeats it; the codec has the better message */
        return Py_NewRef(Py_None);
    }
    at += 5 + length;
    entry = Py_XNewRef(PyDict_GetItemWithError(is_call ? self->calls : self->evals, code));
    if (entry == NULL) {
        goto not_plain;
    }
    step = is_call ? "args" : "globals";
    if (!is_call && size - at == sizeof(empty_map) && memcmp(start + at, empty_map, sizeof(empty_map)) == 0) {
        first = NULL;
    }
    else {
        first = self->codec->read(self->native, frame, at, as_bytes, self->max_depth, &at);
        if (first == NULL) {
            goto failed;
        }
        if (is_call) {
            step = "kwargs";
            second = self->codec->read(self->native, frame, at, as_bytes, self->max_depth, &at);
            if (second == NULL) {
                goto failed;
            }
        }
        if (at != size || Py_TYPE(first) != (is_call ? &PyList_Type : &PyDict_Type) ||
            (is_call && Py_TYPE(second) != &PyDict_Type)) {
            goto not_plain;
        }
        named = by_name(self, is_call ? second : first);
        if (named == NULL) {
            goto not_plain;
        }
    }
    step = "run";
    if (is_call) {
        value = call_target(entry, first, named);
    }
    else {
        namespace = args[5] == Py_None ? PyDict_Copy(self->base) : Py_NewRef(args[5]);
        if (namespace == NULL || (named != NULL && PyDict_Update(namespace, named) < 0) ||
            PyDict_SetItemString(namespace, "__loader__", PyTuple_GetItem(entry, 2)) < 0) {
            goto failed;
        }
        Py_CLEAR(first);
        Py_CLEAR(named);
        value = run_code(entry, namespace);
    }
    if (value == NULL) {
        goto failed;
    }
    if (UNLIKELY(!is_plain_value(value))) {
        result = PyTuple_Pack(2, value, namespace == NULL ? Py_None : namespace);
        goto leave;
    }
    step = "result";
    memcpy(head, ok_head, sizeof(ok_head));
    memcpy(head + sizeof(ok_head), id_term, (size_t)id_bytes);
    result = write_frame(self, value, head, (Py_ssize_t)sizeof(ok_head) + id_bytes);
    if (result != NULL) {
        goto leave;
    }
failed:
    {
        PyObject *error = take_exception();
        result = error == NULL ? NULL : Py_BuildValue("(sOO)", step, error, namespace == NULL ? Py_None : namespace);
        Py_XDECREF(error);
        goto leave;
    }
not_plain:
    result = PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
leave:
    Py_XDECREF(value);
    Py_XDECREF(named);
    Py_XDECREF(second);
    Py_XDECREF(first);
    Py_XDECREF(code);
    Py_XDECREF(entry);
    if (namespace != NULL) {
        /* Functions of the namespace refer to it: without this its data would stay until the collector runs. */
        int cyclic = args[5] == Py_None && result != NULL && Py_TYPE(result) != &PyTuple_Type && Py_REFCNT(namespace) > 1;
        Py_DECREF(namespace); /* a __del__ may run */
        if (UNLIKELY(cyclic)) {
            PyObject *done = PyObject_CallNoArgs(self->collect);
            if (done == NULL) {
                PyErr_Clear(); /* a signal; the reply exists already */
            }
            Py_XDECREF(done);
        }
    }
    return result;
}

static int
plain_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(((Plain *)object)->given);
    return 0;
}

static int
plain_clear(PyObject *object)
{
    Py_CLEAR(((Plain *)object)->given);
    return 0;
}

static void
plain_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    PyObject_GC_UnTrack(object);
    plain_clear(object);
    free_object(object);
    Py_DECREF(type);
}

static PyObject *
plain_new(PyTypeObject *type, PyObject *args, PyObject *given)
{
    static char *words[] = {"native", "evals", "calls", "base", "names",
                            "export", "collect", "max_frame_bytes", "max_depth", NULL};
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Plain *self = (Plain *)allocate(type, 0);
    PyObject *capsule;
    if (self == NULL) {
        return NULL;
    }
    if (!PyArg_ParseTupleAndKeywords(args, given, "$OO!O!O!O!OOLi", words, &self->native, &PyDict_Type, &self->evals,
                                     &PyDict_Type, &self->calls, &PyDict_Type, &self->base, &PyDict_Type, &self->names,
                                     &self->export, &self->collect, &self->max_bytes, &self->max_depth)) {
        Py_DECREF(self);
        return NULL;
    }
    self->given = Py_NewRef(given);
    capsule = PyObject_GetAttrString(self->native, "_c_api");
    self->codec = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, NATIVE_API_NAME);
    Py_XDECREF(capsule);
    if (self->codec == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyMethodDef plain_methods[] = {
    {"evaluate", (PyCFunction)(void (*)(void))evaluate, METH_FASTCALL, evaluate_doc},
    {"frame", (PyCFunction)(void (*)(void))frame, METH_FASTCALL, frame_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(plain_doc, "Plain(*, native, evals, calls, base, names, export, collect, max_frame_bytes,\n"
                        "      max_depth)\n\n"
                        "Evaluates plain requests: code and targets that are in `evals` and `calls`, with values whose\n"
                        "keys are in `names`.");

static PyType_Slot plain_slots[] = {
    {Py_tp_doc, (void *)plain_doc},
    {Py_tp_new, (void *)plain_new},
    {Py_tp_dealloc, (void *)plain_dealloc},
    {Py_tp_traverse, (void *)plain_traverse},
    {Py_tp_clear, (void *)plain_clear},
    {Py_tp_methods, plain_methods},
    {0, NULL},
};

static PyType_Spec plain_spec = {
    "port_server.server._fast.Plain",
    sizeof(Plain),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    plain_slots,
};

/* ---- requests in threads ----------------------------------------------------------------------------------------- */

PyDoc_STRVAR(guarded_doc,
             "guarded(stack, request, function, /, *args)\n"
             "--\n\n"
             "Call `function` with `request` on top of `stack`. After the call an exception that was set for this\n"
             "thread, and is not raised yet, is dropped: no bytecode runs between the end of the call and that.");

static PyObject *
guarded(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    PyObject *given, *result, *type, *value, *traceback;
    Py_ssize_t index, size;
    if (count < 3 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "guarded() takes a list, a request and a function");
        return NULL;
    }
    given = PyTuple_New(count - 3);
    if (given == NULL) {
        return NULL;
    }
    for (index = 3; index < count; index++) {
        PyTuple_SetItem(given, index - 3, Py_NewRef(args[index]));
    }
    if (PyList_Append(args[0], args[1]) < 0) {
        Py_DECREF(given);
        return NULL;
    }
    result = PyObject_CallObject(args[2], given);
    Py_DECREF(given);
    PyErr_Fetch(&type, &value, &traceback);
    size = PyList_Size(args[0]);
    (void)PyList_SetSlice(args[0], size - 1, size, NULL);
    (void)PyThreadState_SetAsyncExc(PyThread_get_thread_ident(), NULL);
    PyErr_Restore(type, value, traceback);
    return result;
}

PyDoc_STRVAR(strike_doc,
             "strike(ident, stack, request, codes, exception, /)\n"
             "--\n\n"
             "Raise `exception` in a thread before its next bytecode, if `request` stands on the `stack` of that thread\n"
             "and its frames, the innermost first, run these codes. The GIL is held from the look until the exception\n"
             "is set. Tell whether it was.");

static PyObject *
strike(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    PyObject *current_frames = PySys_GetObject("_current_frames"), *frames, *frame = NULL;
    Py_ssize_t depth = 0, size;
    int collecting, same;
    if (check_count("strike", count, 5) < 0) {
        return NULL;
    }
    size = PyList_Size(args[3]);
    collecting = PyGC_Disable(); /* a `__del__` would release the GIL */
    frames = current_frames == NULL ? NULL : PyObject_CallNoArgs(current_frames);
    if (frames != NULL && PySequence_Contains(args[1], args[2]) == 1) {
        frame = Py_XNewRef(PyDict_GetItemWithError(frames, args[0]));
    }
    for (same = frame != NULL; same && frame != Py_None;) {
        PyObject *code = PyObject_GetAttrString(frame, "f_code"), *back = PyObject_GetAttrString(frame, "f_back");
        same = code != NULL && back != NULL && depth < size && PyList_GetItem(args[3], depth++) == code;
        Py_XDECREF(code);
        Py_DECREF(frame);
        frame = back;
    }
    same = same && depth == size;
    if (same) {
        (void)PyThreadState_SetAsyncExc(PyLong_AsUnsignedLong(args[0]), args[4]);
    }
    Py_XDECREF(frame);
    Py_XDECREF(frames);
    if (collecting) {
        PyGC_Enable();
    }
    return PyErr_Occurred() ? NULL : PyBool_FromLong(same);
}

/* ---- shared memory ----------------------------------------------------------------------------------------------- */

/* The memory of a frame that did not come through the pipe. It is free for another one when nothing refers to this any
 * more; then its slot's generation is written where the other side looks.
 */
typedef struct {
    PyObject_HEAD
    Py_buffer memory;
    Py_buffer released;
    Py_ssize_t size, slot;
    unsigned int generation;
    int pid;
} Segment;

static PyObject *
segment_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(given))
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Segment *self = (Segment *)allocate(type, 0);
    PyObject *memory, *released;
    if (self == NULL) {
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OnOnI", &memory, &self->size, &released, &self->slot, &self->generation) ||
        PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) < 0 ||
        PyObject_GetBuffer(released, &self->released, PyBUF_WRITABLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    if (self->size < 0 || self->size > self->memory.len || self->slot < 0 ||
        (self->slot + 1) * (Py_ssize_t)sizeof(self->generation) > self->released.len) {
        Py_DECREF(self);
        PyErr_SetString(PyExc_ValueError, "the segment does not fit into its memory");
        return NULL;
    }
    self->pid = (int)getpid();
    return (PyObject *)self;
}

static int
segment_getbuffer(PyObject *object, Py_buffer *view, int flags)
{
    Segment *self = (Segment *)object;
    return PyBuffer_FillInfo(view, object, self->memory.buf, self->size, 0, flags);
}

static void
segment_dealloc(PyObject *object)
{
    Segment *self = (Segment *)object;
    PyTypeObject *type = Py_TYPE(object);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    PyBuffer_Release(&self->memory);
    /* A forked child has a copy of this, which says nothing about the memory that it shares. */
    if (self->pid == (int)getpid()) {
        __atomic_store_n((unsigned int *)self->released.buf + self->slot, self->generation, __ATOMIC_RELEASE);
    }
    PyBuffer_Release(&self->released);
    free_object(object);
    Py_DECREF(type);
}

PyDoc_STRVAR(segment_doc, "Segment(memory, size, released, slot, generation, /)\n"
                          "--\n\n"
                          "The first `size` bytes of `memory`, as a buffer. When the last reference to it goes, `generation`\n"
                          "is written to `released`, an array of unsigned ints, at `slot`.");

static PyType_Slot segment_slots[] = {
    {Py_tp_doc, (void *)segment_doc},
    {Py_tp_new, (void *)segment_new},
    {Py_tp_dealloc, (void *)segment_dealloc},
    {Py_bf_getbuffer, (void *)segment_getbuffer},
    {0, NULL},
};

static PyType_Spec segment_spec = {
    "port_server.server._fast.Segment",
    sizeof(Segment),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    segment_slots,
};

/* ---- module ------------------------------------------------------------------------------------------------------ */

static int
add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int added = type == NULL ? -1 : PyModule_AddObjectRef(module, name, type);
    Py_XDECREF(type);
    return added;
}

static int
module_exec(PyObject *module)
{
    return add_type(module, &plain_spec, "Plain") < 0 ? -1 : add_type(module, &segment_spec, "Segment");
}

static PyMethodDef methods[] = {
    {"guarded", (PyCFunction)(void (*)(void))guarded, METH_FASTCALL, guarded_doc},
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, receive_doc},
    {"strike", (PyCFunction)(void (*)(void))strike, METH_FASTCALL, strike_doc},
    {"write", (PyCFunction)(void (*)(void))write_at_once, METH_FASTCALL, write_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)module_exec},
    {0, NULL},
};

PyDoc_STRVAR(module_doc, "Leaf functions of the request path.");

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_fast", module_doc, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit__fast(void)
{
    return PyModuleDef_Init(&definition);
}
