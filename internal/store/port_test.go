package store_test

import (
	"certsync/internal/reconcile"
	"certsync/internal/store"
)

var _ reconcile.Store = (*store.Store)(nil)
