// Package failpoint lets a test end the process, as kill -9 would, at a named place of the flow. Without the build tag
// "failpoint" every call is empty and compiled away. Floor 0.
package failpoint
