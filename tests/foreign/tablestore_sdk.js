// Drives the simulated Tablestore through Alibaba Cloud's own SDK for Node.js, which writes some rows
// with more bytes than they need.
//
//     node tablestore_sdk.js MODULES ENDPOINT INSTANCE
//
// MODULES is the folder with the SDK. Exits with 0 if the SDK accepts all answers of the simulator, and
// the simulator accepts all requests of the SDK.
'use strict';

const assert = require('assert');
const path = require('path');

const [modules, endpoint, instancename] = process.argv.slice(2);
const TableStore = require(path.resolve(modules, 'tablestore'));

const Long = TableStore.Long;
const client = new TableStore.Client({
  accessKeyId: process.env.SDK_KEY_ID,
  secretAccessKey: process.env.SDK_KEY_SECRET,
  endpoint: `http://${endpoint}`,
  instancename,
  // Each call is made once: a retry would hide the first answer.
  maxRetries: 0,
});
const expectation = TableStore.RowExistenceExpectation;
const ignore = new TableStore.Condition(expectation.IGNORE, null);
const absent = new TableStore.Condition(expectation.EXPECT_NOT_EXIST, null);
const exists = new TableStore.Condition(expectation.EXPECT_EXIST, null);
const tableName = 'device_table';
const key = (id) => [{ deviceId: id }];

function call(operation, parameters) {
  return new Promise((resolve, reject) => {
    client[operation](parameters, (error, data) => (error ? reject(error) : resolve(data)));
  });
}

async function refused(status, operation, parameters) {
  try {
    await call(operation, parameters);
  } catch (error) {
    assert.strictEqual(error.code, status, `${operation}: ${error.code} ${error.message}`);
    return;
  }
  assert.fail(`${operation} was not refused`);
}

function columns(row) {
  return Object.fromEntries(row.attributes.map((column) => [column.columnName, column.columnValue]));
}

async function main() {
  const table = {
    tableMeta: { tableName, primaryKey: [{ name: 'deviceId', type: 'STRING' }] },
    reservedThroughput: { capacityUnit: { read: 0, write: 0 } },
    tableOptions: { timeToLive: -1, maxVersions: 2 },
  };
  await call('createTable', table);
  await refused(409, 'createTable', table);
  assert.deepStrictEqual((await call('listTable', {})).tableNames, [tableName]);
  const described = await call('describeTable', { tableName });
  assert.strictEqual(described.tableOptions.maxVersions, 2);

  const put = (id, condition) => ({
    tableName,
    condition,
    primaryKey: key(id),
    attributeColumns: [{ state: 'enabled' }, { n: Long.fromNumber(7) }, { blob: Buffer.from([0, 255]) }],
  });
  await call('putRow', put('SN1', absent));
  await refused(403, 'putRow', put('SN1', absent));
  let row = (await call('getRow', { tableName, primaryKey: key('SN1'), maxVersions: 1 })).row;
  assert.strictEqual(row.primaryKey[0].value, 'SN1');
  assert.strictEqual(columns(row).state, 'enabled');
  assert.strictEqual(columns(row).n.toString(), '7');

  // The SDK writes this row with bytes behind its checksum.
  const version = row.attributes.find((column) => column.columnName === 'n').timestamp;
  await call('updateRow', {
    tableName,
    condition: exists,
    primaryKey: key('SN1'),
    updateOfAttributeColumns: [{ DELETE: [{ n: version }] }, { DELETE_ALL: ['blob'] }, { PUT: [{ a: 'b' }] }],
  });
  row = (await call('getRow', { tableName, primaryKey: key('SN1'), maxVersions: 1 })).row;
  assert.deepStrictEqual(Object.keys(columns(row)), ['a', 'state']);

  const single = new TableStore.SingleColumnCondition('state', 'disabled', TableStore.ComparatorType.EQUAL, false);
  await refused(403, 'deleteRow', {
    tableName,
    condition: new TableStore.Condition(expectation.EXPECT_EXIST, single),
    primaryKey: key('SN1'),
  });

  const rows = ['SN1', 'SN2', 'SN3'].map((id) => ({ type: 'PUT', ...put(id, absent) }));
  const written = await call('batchWriteRow', { tables: [{ tableName, rows }] });
  assert.deepStrictEqual(written.tables.map((result) => result.isOk), [false, true, true]);
  const read = await call('batchGetRow', {
    tables: [{ tableName, primaryKey: [key('SN2'), key('none')], maxVersions: 1 }],
  });
  assert.deepStrictEqual(read.tables[0].map((result) => result.isOk), [true, true]);

  // −∞ and +∞ have bytes behind their rows, too.
  const range = {
    tableName,
    direction: TableStore.Direction.FORWARD,
    maxVersions: 1,
    inclusiveStartPrimaryKey: [{ deviceId: TableStore.INF_MIN }],
    exclusiveEndPrimaryKey: [{ deviceId: TableStore.INF_MAX }],
    limit: 2,
  };
  const page = await call('getRange', range);
  assert.deepStrictEqual(page.rows.map((found) => found.primaryKey[0].value), ['SN1', 'SN2']);
  assert.strictEqual(page.nextStartPrimaryKey[0].value, 'SN3');

  await call('deleteRow', { tableName, condition: exists, primaryKey: key('SN1') });
  await call('deleteTable', { tableName });
  await refused(404, 'describeTable', { tableName });
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
