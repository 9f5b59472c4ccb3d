#include <Python.h>
static struct PyModuleDef m = {PyModuleDef_HEAD_INIT, ""};
PyMODINIT_FUNC PyInit_(void) { return PyModule_Create(&m); }
