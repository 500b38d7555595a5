/* Tells the server of an object that no process of this node refers to its handle any more. That is all: no Python, and no
 * loop, runs in the BEAM.
 */
#include <erl_nif.h>

typedef struct {
    ErlNifPid server, owner;
    ErlNifUInt64 id;
} Handle;

static ErlNifResourceType *handles;

/* The last reference was collected: `{collected, Id, Owner}` for the server. */
static void
collected(ErlNifEnv *env, void *object)
{
    Handle *handle = object;
    ErlNifEnv *message = enif_alloc_env();
    if (message != NULL) {
        ERL_NIF_TERM id = enif_make_uint64(message, handle->id);
        ERL_NIF_TERM owner = enif_make_pid(message, &handle->owner);
        (void)enif_send(env, &handle->server, message,
                        enif_make_tuple3(message, enif_make_atom(message, "collected"), id, owner));
        enif_free_env(message);
    }
}

/* watch(Server, Owner, Id): a reference. */
static ERL_NIF_TERM
watch(ErlNifEnv *env, int count, const ERL_NIF_TERM given[])
{
    Handle wanted, *handle;
    ERL_NIF_TERM reference;
    if (count != 3 || !enif_get_local_pid(env, given[0], &wanted.server) ||
        !enif_get_local_pid(env, given[1], &wanted.owner) || !enif_get_uint64(env, given[2], &wanted.id)) {
        return enif_make_badarg(env);
    }
    handle = enif_alloc_resource(handles, sizeof(Handle));
    if (handle == NULL) {
        return enif_make_badarg(env);
    }
    *handle = wanted;
    reference = enif_make_resource(env, handle);
    enif_release_resource(handle);
    return reference;
}

/* 'loaded?'(): true. */
static ERL_NIF_TERM
loaded(ErlNifEnv *env, int count, const ERL_NIF_TERM given[])
{
    (void)count;
    (void)given;
    return enif_make_atom(env, "true");
}

static int
load(ErlNifEnv *env, void **data, ERL_NIF_TERM info)
{
    (void)data;
    (void)info;
    handles = enif_open_resource_type(env, NULL, "handle", collected, ERL_NIF_RT_CREATE | ERL_NIF_RT_TAKEOVER, NULL);
    return handles == NULL;
}

static int
upgrade(ErlNifEnv *env, void **data, void **old_data, ERL_NIF_TERM info)
{
    (void)old_data;
    return load(env, data, info);
}

static ErlNifFunc functions[] = {{"watch", 3, watch, 0}, {"loaded?", 0, loaded, 0}};

ERL_NIF_INIT(Elixir.PyPort.Collector, functions, load, NULL, upgrade, NULL)
